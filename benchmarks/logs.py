"""Following logs: from a write to the follower's screen, bytes a second, and what 50 followers cost who writes."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import harness
import ray

from ray_launcher import LaunchOptions, RayProcLauncher

#: Writes a line with the time, now and then, in no step with anybody who looks at regular times.
TELLER = """
import random, sys, time
for _ in range(int(sys.argv[1])):
    time.sleep(random.uniform(0.01, 0.09))
    print(time.time(), flush=True)
"""
#: Writes megabytes of lines, so many a second at the most (0: as fast as it can), and says how long that took.
WRITER = """
import os, sys, time
megabytes, rate = int(sys.argv[1]), float(sys.argv[2])
block = (b"x" * 99 + b"\\n") * 10000
began = time.monotonic()
for number in range(megabytes):
    if rate:
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
    assert os.write(1, block) == len(block)
print(time.monotonic() - began, file=sys.stderr, flush=True)
"""
RATE = 50


def python(script: str, *args: object) -> LaunchOptions:
    """Options for it."""
    return LaunchOptions(program=sys.executable, args=["-I", "-S", "-c", script, *map(str, args)])


class Following:
    """The cases; each launches what it follows."""

    def __init__(self, launcher: RayProcLauncher, options: argparse.Namespace) -> None:
        self._launcher, self._options = launcher, options
        self._address = ray.get_runtime_context().gcs_address
        self._logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # noqa: SLF001  # where procs write
        self.latencies: list[float] = []
        self.read: list[int] = []  # megabytes that all followers together have read

    def latency(self) -> float:
        """The median of one follower on the command line, in milliseconds."""
        port = self._launcher.launch("teller", python(TELLER, self._options.lines)).exit_port
        command = [sys.executable, "-m", "ray_launcher", "logs", "-f", "--stdout", "teller"]
        command += ["--address", self._address, "--session", self._launcher.session]
        found: list[float] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            connected = float("inf")
            for line in process.stdout:
                connected = min(connected, time.time())  # what was written before had to wait for that
                if float(line) > connected:
                    found.append((time.time() - float(line)) * 1000)
        assert port.wait().ok
        self.latencies += found
        return statistics.median(found)

    def throughput(self) -> float:
        """Megabytes a second of one follower, from the launch to the end of a proc that writes as fast as it can."""
        megabytes, count = self._options.megabytes, 0
        began = time.perf_counter()
        port = self._launcher.launch("writer", python(WRITER, megabytes, 0)).exit_port
        for chunk in self._launcher.output(["writer"], ["stdout"], follow=True):
            count += len(chunk.data)
        taken = time.perf_counter() - began
        assert port.wait().ok
        assert count == megabytes * 1_000_000
        self._tidy()
        return float(megabytes / taken)

    def writing(self, followers: int) -> float:
        """Seconds that a proc takes for what it writes at a rate, with so many who follow it, each in a thread."""
        port = self._launcher.launch("writer", python(WRITER, RATE * self._options.seconds, RATE)).exit_port
        counts = [0] * followers

        def follow(number: int) -> None:
            for chunk in self._launcher.output(["writer"], ["stdout"], follow=True):
                if port.done():
                    break
                counts[number] += len(chunk.data)

        threads = [threading.Thread(target=follow, args=(number,)) for number in range(followers)]
        for thread in threads:
            thread.start()
        tail = port.wait().stderr_tail
        for thread in threads:
            thread.join()
        if followers:
            self.read.append(sum(counts) // 1_000_000)
        self._tidy()
        assert tail
        return float(tail[-1])

    def _tidy(self) -> None:
        self._launcher.remove("writer")
        subprocess.run(["sync"], check=True)


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", lines=200, megabytes=1000, seconds=5, followers=50)
    harness.start_ray()
    with RayProcLauncher() as launcher:
        assert launcher.launch("warm", LaunchOptions(program="/bin/true")).exit_port.wait().ok
        following = Following(launcher, options)
        crowd = f"s for {options.seconds} s at {RATE} MB/s, {options.followers} followers"
        alone = f"s for {options.seconds} s at {RATE} MB/s, none"
        figures = harness.measure(
            {
                "ms from write to screen, p50": following.latency,
                "MB/s of one follower": following.throughput,
                crowd: lambda: following.writing(options.followers),
                alone: lambda: following.writing(0),
            },
            options.rounds,
        )
    taken = sorted(following.latencies)
    shares = {share: taken[min(len(taken) - 1, len(taken) * share // 100)] for share in (50, 90, 99)}
    notes = {
        f"ms from write to screen, {len(taken)} lines": ", ".join(f"p{share} {ms:.1f}" for share, ms in shares.items()),
        "MB that the followers have read meanwhile, by round": following.read,
    }
    harness.report("Following logs", "as said", figures, {"followers / none": (crowd, alone)}, options.json, notes)


if __name__ == "__main__":
    main()
