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


def children(pid: int) -> int:
    """How many a process has. Ours are started with posix_spawn, which returns when they have been exec'ed."""
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def until(count: int, parent: int) -> None:
    """Return when `parent` has so many children."""
    while children(parent) < count:
        time.sleep(0.002)


def ours() -> list[psutil.Process]:
    """The workers, and the supervisors with their guards, of the sessions on the Ray of this process."""
    node = ray._private.worker._global_node  # noqa: SLF001
    raylet = node.all_processes["raylet"][0].process.pid
    sessions = {name.split("-", 1)[1] for name in names() if name.startswith("spawner-")}
    return [
        process
        for process in psutil.process_iter(["cmdline", "ppid"])
        if (words := " ".join(process.info["cmdline"] or []))
        and (
            (process.info["ppid"] == raylet and words.startswith(("ray::ClusterSpawner", "ray::Agent")))
            or ("ray_launcher/node/main.py" in words and any(session in words for session in sessions))
        )
    ]


def names() -> list[str]:
    """Of all actors of ours."""
    return [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]


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
        opts = LaunchOptions(program=SLEEP, args=["9999"])
        with RayProcLauncher() as launcher:
            assert launcher.launch("warm", LaunchOptions(program="/bin/true")).exit_port.wait().ok
            [supervisor] = [each.pid for each in ours() if each.parent() in ours()]
            before = unique_bytes()
            start = time.perf_counter()
            results = launcher.launch_many({str(index): opts for index in range(count)})
            until(count, supervisor)
            seconds = time.perf_counter() - start
            memory.append(unique_bytes())
            growth.append(memory[-1] - before)
            for proc_id in results:
                launcher.kill(proc_id)
            assert all(result.exit_port.wait().returncode == -9 for result in results.values())
        return seconds

    def popen() -> float:
        start = time.perf_counter()
        sleeping = [subprocess.Popen([SLEEP, "8888"]) for _ in range(count)]
        seconds = time.perf_counter() - start  # each returns when its program has been exec'ed
        for child in sleeping:
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
