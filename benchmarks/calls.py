"""Many trivial calls, each in a process of its own: `RayProcExecutor.map` and the standard library's process pool."""

from __future__ import annotations

import operator
import subprocess
import sys
from pathlib import Path

import harness
import ray

from ray_launcher import RayProcLauncher
from ray_launcher.integrations.executor import RayProcExecutor


def ours(launcher: RayProcLauncher, count: int, workers: int) -> float:
    """Calls per second."""
    with RayProcExecutor(workers, launcher=launcher) as pool:
        assert pool.submit(operator.neg, 1).result() == -1  # warm
        taken = harness.timed(lambda: check(list(pool.map(operator.neg, range(count)))))
    return count / taken


def theirs(count: int, workers: int) -> float:
    """The same."""
    script = Path(__file__).with_name("process_pool.py")
    command = [sys.executable, str(script), str(count), str(workers)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def check(values: list[int]) -> None:
    """All have come, in order."""
    assert values == [-number for number in range(len(values))]


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", calls=1000, workers=2)
    count, workers = options.calls, options.workers
    harness.start_ray()
    with RayProcLauncher() as launcher:
        figures = harness.measure(
            {
                "RayProcExecutor.map": lambda: ours(launcher, count, workers),
                "ProcessPoolExecutor.map, max_tasks_per_child=1": lambda: theirs(count, workers),
            },
            options.rounds,
        )
    ray.shutdown()
    harness.report(
        f"{count} trivial calls, {workers} at a time",
        "calls per second",
        figures,
        {"ours / theirs": ("RayProcExecutor.map", "ProcessPoolExecutor.map, max_tasks_per_child=1")},
        options.json,
    )


if __name__ == "__main__":
    main()
