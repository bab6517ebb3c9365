"""From asking a proc to end to its result in the driver: `terminate` beside Popen.terminate."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable

import harness

from ray_launcher import LaunchOptions, RayProcLauncher

WAITS = ["-c", "echo; exec sleep 99"]


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", procs=100)
    harness.start_ray()

    def median_of(once: Callable[[], float]) -> float:
        return statistics.median(once() for _ in range(options.procs)) * 1000

    with RayProcLauncher() as launcher:

        def launched() -> float:
            port = launcher.launch("one", LaunchOptions(program="/bin/sh", args=WAITS)).exit_port
            next(launcher.logs("one", follow=True))
            start = time.perf_counter()
            launcher.terminate("one", 5)
            assert port.wait().returncode == -15
            return time.perf_counter() - start

        def popen() -> float:
            with subprocess.Popen(["/bin/sh", *WAITS], stdout=subprocess.PIPE) as child:
                assert child.stdout is not None
                child.stdout.readline()
                start = time.perf_counter()
                child.terminate()
                child.wait()
                return time.perf_counter() - start

        launched()
        figures = harness.measure(
            {"launch": lambda: median_of(launched), "Popen": lambda: median_of(popen)}, options.rounds
        )
    ratio = {"launch / Popen": ("launch", "Popen")}
    harness.report(f"terminate to result, p50 of {options.procs}", "milliseconds", figures, ratio, options.json)


if __name__ == "__main__":
    main()
