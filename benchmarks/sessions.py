"""Verbs against a session that runs, beside a script that only connects; and what an idle session costs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import harness
import psutil
import ray
from ray.cluster_utils import Cluster

from ray_launcher import LaunchOptions, RayProcLauncher

CONNECT = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"
SLEEP = LaunchOptions(program="sleep", args=["9999"])
#: Seconds over which idle processes are watched.
IDLE = 20.0


@ray.remote(num_cpus=0)
class Plain:
    """An actor that does nothing."""

    def pid(self) -> int:
        """Its process."""
        return psutil.Process().pid


def command(*args: str) -> Callable[[], float]:
    """Seconds that it takes from its start to its end."""
    return lambda: harness.timed(lambda: subprocess.run([sys.executable, *args], check=True, capture_output=True))


def verb(*args: str) -> Callable[[], float]:
    """The same of our command line."""
    return command("-m", "ray_launcher", *args)


def launched(launcher: RayProcLauncher, count: int) -> None:
    """So many more procs run."""
    ids = [f"proc {len(launcher.procs()) + number}" for number in range(count)]
    for start in range(0, count, 500):
        launcher.launch_many(dict.fromkeys(ids[start : start + 500], SLEEP))
    while sum(info.state == "RUNNING" for info in launcher.procs()) < count:
        time.sleep(0.5)


def cpu_share(processes: list[psutil.Process]) -> float:
    """Per cent of a core that they take together."""
    before = [sum(process.cpu_times()[:2]) for process in processes]
    time.sleep(IDLE)
    after = [sum(process.cpu_times()[:2]) for process in processes]
    return 100 * (sum(after) - sum(before)) / IDLE


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", procs=5000, idle=1000)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=2, include_dashboard=False)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    where = ["--address", cluster.address, "--session", "bench"]
    launcher = RayProcLauncher(session="bench", detached=True, history=10_000)
    launched(launcher, 3)
    cases = {
        "a script that connects": command("-c", CONNECT, cluster.address),
        "ps": verb("ps", *where),
        "inspect": verb("inspect", "proc 0", *where),
        "sessions": verb("sessions", "--address", cluster.address),
        "events": verb("events", *where),
    }
    figures = harness.measure(cases, options.rounds)
    launched(launcher, options.idle - 3)
    plain = [Plain.remote() for _ in range(4)]
    actors = [psutil.Process(pid) for pid in ray.get([actor.pid.remote() for actor in plain])]
    parts = {"the session": ours_of(launcher), "4 plain actors": actors}
    time.sleep(5.0)
    idle = harness.measure({name: (lambda each=each: cpu_share(each)) for name, each in parts.items()}, 3)
    launched(launcher, options.procs - options.idle)
    more = {f"ps of {options.procs:,}": verb("ps", *where), "the script again": cases["a script that connects"]}
    figures |= harness.measure(more, options.rounds)
    script = "a script that connects"
    harness.report(
        f"Verbs, from the start of the command to its end; 3 procs, then {options.procs:,}",
        "seconds",
        figures,
        {f"{name} / the script": (name, script) for name in cases if name != script}
        | {f"ps of {options.procs:,} / the script": (f"ps of {options.procs:,}", "the script again")},
        options.json,
    )
    harness.report(f"Idle, {options.idle:,} procs that sleep, on 3 nodes", "per cent of a core", idle, {})
    launcher.end(0)
    ray.shutdown()
    cluster.shutdown()


def ours_of(launcher: RayProcLauncher) -> list[psutil.Process]:
    """Spawner, agents, supervisors and guards."""
    pids = {ray.get(launcher._spawner.facts.remote())["pid"]}  # noqa: SLF001
    pids |= {facts["pid"] for facts in ray.get(launcher._spawner.agents.remote()).values()}  # noqa: SLF001
    nodes = [each for each in psutil.process_iter(["cmdline"]) if _is_node(each, launcher.session)]
    return [*map(psutil.Process, pids), *nodes]


def _is_node(process: psutil.Process, session: str) -> bool:
    words = " ".join(process.info["cmdline"] or [])
    return "ray_launcher/node/main.py" in words and f"/{session}-" in words


if __name__ == "__main__":
    main()
