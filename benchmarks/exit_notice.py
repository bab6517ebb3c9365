"""From a proc's own last moment to its result in the driver, and from `terminate` to that; beside Popen and a Ray task."""

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


def notice(run: Callable[[], tuple[str, float]], count: int) -> float:
    """Median milliseconds from the stamp that a proc writes last to the moment its end is known."""
    taken = []
    for _ in range(count):
        stamp, known = run()
        taken.append((known - float(stamp)) * 1000)
    return statistics.median(taken)


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", procs=100)
    harness.start_ray()
    with RayProcLauncher() as launcher:

        def launched() -> tuple[str, float]:
            result = launcher.launch("one", LaunchOptions(program="/bin/sh", args=STAMP)).exit_port.wait()
            return (result.stderr_tail or ["nan"])[-1], time.time()

        def popen() -> tuple[str, float]:
            child = subprocess.run(["/bin/sh", *STAMP], stderr=subprocess.PIPE, text=True, check=True)
            return child.stderr, time.time()

        def by_task() -> tuple[str, float]:
            return ray.get(in_a_task.remote()), time.time()

        def terminated() -> float:
            taken = []
            for _ in range(options.procs):
                port = launcher.launch(
                    "two", LaunchOptions(program="/bin/sh", args=["-c", "echo; exec sleep 99"])
                ).exit_port
                for _line in launcher.logs("two", follow=True):
                    break
                start = time.perf_counter()
                launcher.terminate("two", 5)
                port.wait()
                taken.append(time.perf_counter() - start)
            return statistics.median(taken) * 1000

        def popen_terminated() -> float:
            taken = []
            for _ in range(options.procs):
                child = subprocess.Popen(["/bin/sh", "-c", "echo; exec sleep 99"], stdout=subprocess.PIPE)
                assert child.stdout is not None
                child.stdout.readline()
                start = time.perf_counter()
                child.terminate()
                child.wait()
                taken.append(time.perf_counter() - start)
                child.stdout.close()
            return statistics.median(taken) * 1000

        launched(), by_task()
        figures = harness.measure(
            {
                "exit to result, launch": lambda: notice(launched, options.procs),
                "exit to result, subprocess.run": lambda: notice(popen, options.procs),
                "exit to result, Ray task": lambda: notice(by_task, options.procs),
                "terminate to result, launch": terminated,
                "terminate to result, Popen": popen_terminated,
            },
            options.rounds,
        )
    harness.report(
        f"latencies, p50 of {options.procs}",
        "milliseconds",
        figures,
        {
            "exit: launch / subprocess.run": ("exit to result, launch", "exit to result, subprocess.run"),
            "exit: launch / Ray task": ("exit to result, launch", "exit to result, Ray task"),
            "terminate: launch / Popen": ("terminate to result, launch", "terminate to result, Popen"),
        },
        options.json,
    )


if __name__ == "__main__":
    main()
