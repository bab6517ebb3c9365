"""A proc that writes gigabytes to stdout, against the same with a plain shell redirect to the same file system."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import harness
import ray

from ray_launcher import LaunchOptions, RayProcLauncher


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", megabytes=5000)
    harness.start_ray()
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # noqa: SLF001  # where procs write, too
    write = ["head", "-c", f"{options.megabytes}M", "/dev/zero"]
    redirected = logs / "redirected"

    def tidy() -> None:
        for path in (redirected, *logs.glob("ray-launcher-*.out")):
            path.unlink(missing_ok=True)
        subprocess.run(["sync"], check=True)

    with RayProcLauncher() as launcher:

        def launched() -> float:
            opts = LaunchOptions(program=write[0], args=write[1:])
            start = time.perf_counter()
            assert launcher.launch("writer", opts).exit_port.wait().ok
            seconds = time.perf_counter() - start
            tidy()
            return options.megabytes / seconds

        def shell() -> float:
            command = ["sh", "-c", f"exec {' '.join(write)} >> {redirected}"]
            seconds = harness.timed(lambda: subprocess.run(command, check=True))
            tidy()
            return options.megabytes / seconds

        assert launcher.launch("warm", LaunchOptions(program="/bin/true")).exit_port.wait().ok
        figures = harness.measure({"launch": launched, "shell redirect": shell}, options.rounds)
    ratio = {"launch / shell redirect": ("launch", "shell redirect")}
    harness.report(f"{options.megabytes} MB to stdout", "MB/s", figures, ratio, options.json)


if __name__ == "__main__":
    main()
