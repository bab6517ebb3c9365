"""Thousands of launches in one session: whether the cost of one stays flat, and the memory comes back."""

from __future__ import annotations

import gc
import statistics

import harness
import psutil
from many_procs import ours

from ray_launcher import LaunchOptions, RayProcLauncher


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", procs=10000, block=1000)
    harness.start_ray()
    opts = LaunchOptions(program="/bin/true")
    blocks = options.procs // options.block

    def memory() -> float:
        gc.collect()
        return sum(process.memory_full_info().uss for process in [*ours(), psutil.Process()]) / 1e6

    with RayProcLauncher() as launcher:

        def block(number: int) -> float:
            ids = [f"{number}/{index}" for index in range(options.block)]
            seconds = harness.timed(lambda: [port.wait() for port in [launcher.launch(i, opts).exit_port for i in ids]])
            return seconds / options.block * 1e6

        block(-1)
        before = memory()
        costs = [block(number) for number in range(blocks)]
        after = memory()
    figures = {"first block": costs[:1], "last block": costs[-1:], "all blocks": costs}
    harness.report(
        f"{options.procs} launches in one session, blocks of {options.block}",
        "microseconds a launch",
        figures,
        {"last / first": ("last block", "first block")},
        options.json,
        {
            "last three / first three blocks": round(statistics.mean(costs[-3:]) / statistics.mean(costs[:3]), 3),
            "memory of ours and the driver (USS), MB before and after": [round(before, 1), round(after, 1)],
        },
    )


if __name__ == "__main__":
    main()
