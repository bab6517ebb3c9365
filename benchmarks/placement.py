"""What resources and gangs cost: a leased launch beside one without; gangs beside torchrun and launch_many."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import harness
import ray
from ray.cluster_utils import Cluster

from ray_launcher import LaunchOptions, Placement, RayProcLauncher

TRUE = LaunchOptions(program="/bin/true")
LEASED = LaunchOptions(program="/bin/true", placement=Placement(num_cpus=1))
TORCHRUN = ["-m", "torch.distributed.run", "--no-python", "--nproc-per-node"]


def in_a_row(launcher: RayProcLauncher, opts: LaunchOptions, count: int) -> float:
    """Milliseconds from launch to exit, on average."""

    def all_of_them() -> None:
        for _ in range(count):
            assert launcher.launch("one", opts).exit_port.wait().ok

    return harness.timed(all_of_them) / count * 1000


def gang_of_true(launcher: RayProcLauncher) -> float:
    """Milliseconds for two groups of four ranks."""
    return harness.timed(lambda: launcher.launch_gang("g", TRUE, nnodes=2, nproc_per_node=4).wait()) * 1000


def until_running(launcher: RayProcLauncher, start: Callable[[], Callable[[], object]], count: int) -> float:
    """Seconds until so many procs run; then they are ended."""
    begun = time.perf_counter()
    end = start()
    while sum(info.state == "RUNNING" for info in launcher.procs()) < count:
        time.sleep(0.01)
    taken = time.perf_counter() - begun
    end()
    return taken


def as_a_gang(launcher: RayProcLauncher, count: int) -> float:
    """Ranks on four nodes."""
    sleeping = LaunchOptions(program="sleep", args=["9999"])

    def start() -> Callable[[], object]:
        gang = launcher.launch_gang("many", sleeping, nnodes=4, nproc_per_node=count // 4)
        return lambda: (gang.kill(), gang.wait())

    return until_running(launcher, start, count // 4 * 4)


def one_by_one(launcher: RayProcLauncher, count: int) -> float:
    """As many procs, no gang."""
    sleeping = LaunchOptions(program="sleep", args=["9999"])

    def start() -> Callable[[], object]:
        many = launcher.launch_many({f"many {n}": sleeping for n in range(count // 4 * 4)})

        def end() -> None:
            for proc_id in many:
                launcher.kill(proc_id)
            for each in many.values():
                each.exit_port.wait()

        return end

    return until_running(launcher, start, count // 4 * 4)


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", procs=200, ranks=1000)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    for _ in range(3):
        cluster.add_node(num_cpus=4, include_dashboard=False)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    with RayProcLauncher() as launcher:
        launcher.launch_gang("first", TRUE, nnodes=4).wait()
        milliseconds = {
            f"launch, wait: holds nothing ({options.procs} in a row)": lambda: in_a_row(launcher, TRUE, options.procs),
            f"launch, wait: 1 CPU ({options.procs} in a row)": lambda: in_a_row(launcher, LEASED, options.procs),
            "gang of 2 x 4": lambda: gang_of_true(launcher),
        }
        milliseconds["ray-launcher run -j 1x4, cold"] = lambda: harness.timed(lambda: run(cluster.address)) * 1000
        if find_spec("torch"):
            milliseconds["torchrun, 8 procs"] = lambda: harness.timed(lambda: torchrun(8)) * 1000
            milliseconds["torchrun, 4 procs"] = lambda: harness.timed(lambda: torchrun(4)) * 1000
        figures = harness.measure(milliseconds, options.rounds)
        names = list(figures)
        harness.report(
            "/bin/true, with and without resources, and as a gang",
            "milliseconds",
            figures,
            {
                "leased / not": (names[1], names[0]),
                **(
                    {"gang / torchrun": (names[2], names[4]), "run / torchrun": (names[3], names[5])}
                    if names[4:]
                    else {}
                ),
            },
            options.json,
        )
        if options.ranks:
            seconds = harness.measure(
                {
                    "gang": lambda: as_a_gang(launcher, options.ranks),
                    "launch_many": lambda: one_by_one(launcher, options.ranks),
                },
                options.rounds,
            )
            title = f"{options.ranks} x sleep on 4 nodes of one machine, until all run"
            harness.report(title, "seconds", seconds, {"gang / launch_many": ("gang", "launch_many")}, None)
    ray.shutdown()
    cluster.shutdown()


def run(address: str) -> None:
    """The command line, from its start to its end."""
    command = [sys.executable, "-m", "ray_launcher", "run", "--address", address, "-j", "1x4", "--", "/bin/true"]
    subprocess.run(command, check=True, capture_output=True)


def torchrun(count: int) -> None:
    """As many procs on one node, without Ray."""
    subprocess.run([sys.executable, *TORCHRUN, str(count), "/bin/true"], check=True, capture_output=True)


if __name__ == "__main__":
    main()
