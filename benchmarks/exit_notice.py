"""From a proc's own last moment to its result in the driver; beside subprocess.run and a Ray task."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable

import harness
import ray

from ray_launcher import LaunchOptions, RayProcLauncher

STAMP = ["-c", "date +%s.%N >&2"]


@ray.remote(num_cpus=1)
def in_a_task() -> str:
    """What one writes by hand."""
    return subprocess.run(["/bin/sh", *STAMP], stderr=subprocess.PIPE, text=True, check=True).stderr


def notice(run: Callable[[], str], count: int) -> float:
    """Median milliseconds from the stamp that a proc writes last to the moment its end is known."""
    return statistics.median((-float(run()) + time.time()) * 1000 for _ in range(count))


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", procs=100)
    harness.start_ray()
    with RayProcLauncher() as launcher:

        def launched() -> str:
            result = launcher.launch("one", LaunchOptions(program="/bin/sh", args=STAMP)).exit_port.wait()
            return (result.stderr_tail or ["nan"])[-1]

        def popen() -> str:
            return subprocess.run(["/bin/sh", *STAMP], stderr=subprocess.PIPE, text=True, check=True).stderr

        def by_task() -> str:
            stamp: str = ray.get(in_a_task.remote())
            return stamp

        launched(), by_task()
        figures = harness.measure(
            {
                "launch": lambda: notice(launched, options.procs),
                "subprocess.run": lambda: notice(popen, options.procs),
                "Ray task, worker warm": lambda: notice(by_task, options.procs),
            },
            options.rounds,
        )
    harness.report(
        f"exit to result, p50 of {options.procs}",
        "milliseconds",
        figures,
        {
            "launch / subprocess.run": ("launch", "subprocess.run"),
            "launch / Ray task": ("launch", "Ray task, worker warm"),
        },
        options.json,
    )


if __name__ == "__main__":
    main()
