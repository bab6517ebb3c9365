"""Two HTTP servers, and a gang of clients that is launched when both are ready."""

import sys

import ray

from ray_launcher import LaunchOptions, Placement, RayProcLauncher, ReadyWhen

CLIENT = "import sys, urllib.request; [urllib.request.urlopen(url).read() for url in sys.argv[1:]]"

with RayProcLauncher() as launcher:
    here = Placement(node_id=ray.get_runtime_context().get_node_id())  # the servers listen on its loopback only
    server = LaunchOptions(
        program=sys.executable,
        args=["-u", "-m", "http.server", "--bind", "127.0.0.1", "0"],  # a port that is free
        placement=here,
        ready_when=ReadyWhen(log="^Serving HTTP on"),
        max_restarts=3,
    )
    servers = launcher.launch_many({"server-a": server, "server-b": server})
    launcher.wait_ready(*servers, timeout=60)

    says = [next(launcher.logs(name, follow=True)) for name in servers]  # Serving HTTP on 127.0.0.1 port 8000 (...
    urls = [f"http://127.0.0.1:{line.split()[5]}/" for line in says]
    client = LaunchOptions(program=sys.executable, args=["-c", CLIENT, *urls], placement=here)
    print(launcher.launch_gang("clients", client, nproc_per_node=4).wait())
    for name in servers:
        launcher.terminate(name, timeout=5)
        print(name, servers[name].exit_port.wait())
