"""Keys in a proc's terminal: from `Stdin.write` to their echo in `follow`, and a pipe's throughput."""

from __future__ import annotations

import statistics
import time

import harness
import ray

from ray_launcher import LaunchOptions, RayProcLauncher

_MEGABYTE = bytes(1 << 20)


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", keys=50, megabytes=100)
    harness.start_ray()
    with RayProcLauncher() as launcher:
        launcher.launch("terminal", LaunchOptions(program="cat", tty=True))
        stdin, echoes = launcher.stdin("terminal"), launcher.follow(["terminal"])

        def key() -> None:
            stdin.write(b"k")
            next(echoes)

        def keys() -> float:
            taken = []
            for number in range(options.keys):
                taken.append(harness.timed(key))
                time.sleep(0.05 + 0.03 * (number % 7) / 7)  # not in step with whoever looks for output
            return statistics.median(taken) * 1000

        def pipe() -> float:
            port = launcher.launch("pipe", LaunchOptions(program="wc", args=["-c"], want_stdin=True)).exit_port
            into = launcher.stdin("pipe")
            into.write(b"begin")

            def write() -> None:
                for _ in range(options.megabytes):
                    into.write(_MEGABYTE)

            seconds = harness.timed(write)
            into.close()
            port.wait()
            return options.megabytes / seconds

        key()
        echo = harness.measure({f"echo of a key, median of {options.keys} (ms)": keys}, options.rounds)
        rate = harness.measure({f"{options.megabytes} MiB through a pipe (MiB/s)": pipe}, options.rounds)
        launcher.kill("terminal")
    ray.shutdown()
    harness.report("Stdin", "milliseconds, and MiB/s", {**echo, **rate}, {}, options.json)


if __name__ == "__main__":
    main()
