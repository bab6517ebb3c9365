"""Two Monarch hosts, from the making of a job until they are ready: Monarch's own `ProcessJob`, and our `RayJob`.

The cluster has two nodes, on this machine. Each case has a driver of its own, since Monarch has one transport per
process; it makes and kills a job once before it counts.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import harness
import ray
from ray.cluster_utils import Cluster

from ray_launcher import RayProcLauncher

SESSION = "bench"


def drive(case: str, address: str) -> None:
    """Measure a job for each line of stdin."""
    from monarch.job import ProcessJob  # noqa: PLC0415  # in the drivers only

    from ray_launcher.integrations.monarch import RayJob  # noqa: PLC0415

    def make() -> Any:
        if case == "process":
            return ProcessJob({"hosts": 2})
        session = SESSION if case == "warm" else None
        return RayJob({"hosts": 2}, session=session, address=address, grace=1)

    if case != "process":
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    for line in sys.stdin:
        job = make()
        seconds = harness.timed(lambda job=job: job.state(cached_path=None).hosts.initialized.get())
        job.kill()
        print(f"{line.strip()} {seconds}", flush=True)


def driver(case: str, address: str) -> Callable[[], float]:
    """Seconds until the hosts are ready, each time that it is called."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--drive", case, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    into, out = process.stdin, process.stdout

    def once() -> float:
        into.write("seconds\n")
        into.flush()
        return float(next(line.split()[1] for line in out if line.startswith("seconds ")))

    once()
    return once


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2, include_dashboard=False)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    session = RayProcLauncher(SESSION, detached=True)
    names = {
        "process": "ProcessJob",
        "warm": "RayJob, in a session that has run on both nodes",
        "cold": "RayJob, in a session of its own",
    }
    figures = harness.measure({name: driver(case, cluster.address) for case, name in names.items()}, options.rounds)
    harness.report(
        "Two Monarch hosts ready",
        "seconds",
        figures,
        {f"{names[case]} / ProcessJob": (names[case], names["process"]) for case in ("warm", "cold")},
        options.json,
    )
    session.end(0)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--drive"]:
        drive(*sys.argv[2:])
    else:
        main()
