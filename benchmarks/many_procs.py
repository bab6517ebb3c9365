"""Many procs alive at once: how long until all run, what they cost in memory, against Popen and one Ray task each."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import harness
import psutil
import ray

from ray_launcher import LaunchOptions, RayProcLauncher

SLEEP = "/bin/sleep"


@ray.remote(num_cpus=0.01, max_retries=0)
def in_a_task(directory: str, index: int) -> int:
    """What one writes by hand: a worker that waits for its program."""
    child = subprocess.Popen([SLEEP, "9999"])
    Path(directory, str(index)).touch()
    return child.wait()


def sleeping(duration: str) -> int:
    """How many `sleep DURATION` have been exec'ed."""
    return sum(process.info["cmdline"] == [SLEEP, duration] for process in psutil.process_iter(["cmdline"]))


def until(count: int, duration: str) -> None:
    """Return when `count` of them run."""
    while sleeping(duration) < count:
        time.sleep(0.005)


def ours() -> list[psutil.Process]:
    """The workers and supervisors of a session."""
    marks = ("ray::ClusterSpawner", "ray::Agent", "ray_launcher/node/main.py")
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(mark in " ".join(process.info["cmdline"] or []) for mark in marks)
    ]


def unique_bytes() -> int:
    """Memory that is theirs, shared pages divided among those who share them (PSS)."""
    return sum(process.memory_full_info().pss for process in ours())


def end(processes: list[psutil.Process]) -> None:
    """KILL them and wait until they are gone."""
    for process in processes:
        process.kill()
    psutil.wait_procs(processes)


def measure_tasks(count: int) -> float:
    """Seconds until `count` Ray tasks have their program running."""
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        refs = [in_a_task.remote(directory, index) for index in range(count)]
        while len(list(Path(directory).iterdir())) < count:
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        end([process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == [SLEEP, "9999"]])
        ray.get(refs)
    return seconds


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", procs=1000, tasks=50)
    harness.start_ray()
    count = options.procs
    memory: list[float] = []

    def launched() -> float:
        opts = LaunchOptions(program=SLEEP, args=["7777"])
        with RayProcLauncher() as launcher:
            assert launcher.launch("warm", LaunchOptions(program="/bin/true")).exit_port.wait().ok
            before = unique_bytes()
            start = time.perf_counter()
            results = launcher.launch_many({str(index): opts for index in range(count)})
            until(count, "7777")
            seconds = time.perf_counter() - start
            memory.append(unique_bytes())
            growth.append(memory[-1] - before)
            for proc_id in results:
                launcher.kill(proc_id)
            assert all(result.exit_port.wait().returncode == -9 for result in results.values())
        return seconds

    def popen() -> float:
        start = time.perf_counter()
        children = [subprocess.Popen([SLEEP, "8888"]) for _ in range(count)]
        until(count, "8888")
        seconds = time.perf_counter() - start
        for child in children:
            child.kill()
            child.wait()
        return seconds

    growth: list[float] = []
    figures = harness.measure({"launch_many": launched, "Popen": popen}, options.rounds)
    tasks = [measure_tasks(options.tasks)]
    extrapolated = tasks[0] / options.tasks * count
    harness.report(
        f"{count} x {SLEEP}, all running at once",
        "seconds",
        {**figures, f"{options.tasks} Ray tasks, once, cold": tasks},
        {"launch_many / Popen": ("launch_many", "Popen")},
        options.json,
        {
            f"one Ray task per proc, extrapolated from {options.tasks} to {count}, seconds": round(extrapolated, 1),
            "times faster than that": round(extrapolated / sorted(figures["launch_many"])[len(memory) // 2]),
            f"KB a proc, all of ours with {count} alive (PSS)": round(
                sorted(memory)[len(memory) // 2] / count / 1000, 1
            ),
            "KB a proc, growth alone": round(sorted(growth)[len(growth) // 2] / count / 1000, 1),
        },
    )


if __name__ == "__main__":
    main()
