"""A cluster of three nodes for tests, drivers in processes of their own, and what there is of one session."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from leaks import ray_starts
from node_rig import running, until
from ray.cluster_utils import Cluster

from ray_launcher import ExitPort, LaunchOptions, Placement, ProcExitResult, RayProcLauncher
from ray_launcher.cluster.actors import NAMESPACE

#: Seconds after which a wait fails; the machine may be busy with other tests.
DEADLINE = 60.0
#: What the raylets have in their environment, besides that of the tests.
RAYLET_ENV = {"OMP_NUM_THREADS": "3", "RAY_AUTH_TOKEN": "5ec4e7" * 8, "CUDA_VISIBLE_DEVICES": "6,7", "OF_RAYLET": "yes"}
#: A node that is gone is noticed within two seconds instead of twenty; one that only is slow is not taken for such.
_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 4,
}


class Nodes:
    """A head without CPUs, and nodes `a` and `b`; this process is connected."""

    def __init__(self) -> None:
        quiet: dict[str, Any] = {"include_dashboard": False, "num_gpus": 0, "object_store_memory": 100 << 20}
        quiet["include_log_monitor"] = False  # it shows drivers what workers print, and polls
        self._quiet = quiet
        head = {"num_cpus": 0, "labels": {"zone": "head"}, "_system_config": _HEALTH_CHECKS, **quiet}
        with ray_starts():
            self._cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
        self.address: str = self._cluster.address
        for zone in ("a", "b"):
            self._cluster.add_node(num_cpus=2, labels={"zone": zone, "disk": f"ssd-{zone}"}, **{**quiet, "num_gpus": 2})
        ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        until(lambda: len(self.ids()) == 3, "three nodes", DEADLINE)

    def ids(self) -> dict[str, str]:
        """{zone: node id} of the living nodes."""
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        return {node["Labels"].get("zone", ""): node["NodeID"] for node in nodes if node["Alive"]}

    def on(self, zone: str) -> Placement:
        return Placement(node_id=self.ids()[zone])

    @contextlib.contextmanager
    def one_more(self, labels: dict[str, str], **more: Any) -> Iterator[str]:
        """Another node, for as long as this is open; its id."""
        node = self._cluster.add_node(num_cpus=1, labels=labels, **more, **self._quiet)
        try:
            yield node.node_id
        finally:
            self._cluster.remove_node(node, allow_graceful=False)
            until(lambda: node.node_id not in self.ids().values(), "Ray knows that the node is gone", DEADLINE)

    def shut_down(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


#: What the cluster has to give away.
ALL = {"CPU": 4.0, "GPU": 4.0}


def free() -> dict[str, float]:
    """What of it nobody holds."""
    available = ray.available_resources()  # type: ignore[no-untyped-call]
    return {name: available.get(name, 0.0) for name in ALL}


def end_all(launcher: RayProcLauncher) -> None:
    """Kill what runs, or waits; it may be gone a little later."""
    for proc_id in launcher.active_procs:
        launcher.kill(proc_id)


def slowness() -> float:
    """How much longer than on an idle machine things take; promises in seconds are meant for one."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def shell(script: str, placement: Placement | None = None, **more: Any) -> LaunchOptions:
    return LaunchOptions(program="sh", args=["-c", script], placement=placement or Placement(), **more)


def python(script: str, placement: Placement | None = None, **more: Any) -> LaunchOptions:
    args = ["-I", "-S", "-c", script]
    return LaunchOptions(program=sys.executable, args=args, placement=placement or Placement(), **more)


def ended(port: ExitPort) -> ProcExitResult:
    return port.wait(DEADLINE)


def pid_of(launcher: RayProcLauncher, proc_id: str) -> int:
    """The leader's, once it runs."""
    pids = until(lambda: [info.pid for info in launcher.procs() if info.proc_id == proc_id and info.pid], "it runs")
    return pids[0]


@contextlib.contextmanager
def living(launcher: RayProcLauncher, proc_id: str, opts: LaunchOptions) -> Iterator[None]:
    """The proc runs, or waits to, for as long as this is open."""
    port = launcher.launch(proc_id, opts).exit_port
    try:
        yield
    finally:
        launcher.kill(proc_id)
        ended(port)


def starts_writing(launcher: RayProcLauncher, *proc_ids: str) -> None:
    """Return when each of them has written something."""
    silent = set(proc_ids)
    for chunk in launcher.follow(proc_ids):
        silent.discard(chunk.proc_id)
        if not silent:
            return


def procs_of(session: str) -> dict[int, str]:
    """The living processes that carry a cookie of the session, by pid."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environ = (process / "environ").read_bytes()
            if f"RAY_LAUNCHER_ID={session}/".encode() in environ and running(int(process.name)):
                found[int(process.name)] = _command(int(process.name))
    return found


def supervisors_of(session: str) -> dict[int, str]:
    """Supervisors and guards of the session, by pid."""
    marker = f"{runtime_directory()}/{session}-"
    pids = (int(process.name) for process in Path("/proc").glob("[0-9]*"))
    found = {pid: _command(pid) for pid in pids}
    return {pid: words for pid, words in found.items() if "node/main.py" in words and marker in words and running(pid)}


def actors_of(session: str) -> list[str]:
    """The names of the living actors of the session."""
    named = ray.util.list_named_actors(all_namespaces=True)
    names = [actor["name"] for actor in named if actor["namespace"] == NAMESPACE]
    return [name for name in names if name == f"spawner-{session}" or name.startswith(f"agent-{session}-")]


def agents_of(session: str) -> list[Any]:
    """Handles of the agents of the session."""
    return [ray.get_actor(name, NAMESPACE) for name in actors_of(session) if name.startswith("agent-")]


def runtime_directory() -> Path:
    return Path(tempfile.gettempdir()) / f"ray-launcher-{os.geteuid()}"


def rest_of(session: str) -> list[str]:
    """Everything of the session but its procs, in words."""
    directories = [f"directory {path}" for path in runtime_directory().glob(f"{session}-*")]
    helpers = [f"supervisor or guard {pid}: {words}" for pid, words in supervisors_of(session).items()]
    actors = [f"actor {name}" for name in actors_of(session)]
    return directories + helpers + actors + _orphaned_spare_files()


def _orphaned_spare_files() -> list[str]:
    spare = Path(tempfile.gettempdir()).glob("ray/session_*/logs/ray-launcher-spare-*")
    return [f"spare log file {path}" for path in spare if not running(int(path.name.split("-")[3]))]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def ran(*command: str, **environ: str) -> str:
    """The output of a command that succeeds."""
    environ = {**os.environ, **environ}
    command = (sys.executable, *command)
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr}"
    return done.stdout


class Driver:
    """A Python process that runs `script`, and is told things line by line."""

    def __init__(self, script: str, *arguments: str, environ: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )

    def read(self) -> str:
        """Its next line; a test that waits for ever for one is ended by its timeout."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, f"the driver has ended: {self.finish()}"
        return line

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def finish(self) -> tuple[int, str]:
        """Its exit status and stderr."""
        _, stderr = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, stderr

    def close(self) -> None:
        """KILL it if it still runs, and let go of it."""
        self.process.kill()
        self.process.communicate()
