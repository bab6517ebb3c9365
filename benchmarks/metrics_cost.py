"""What metrics cost a launch: two sessions on one Ray, one of which takes metrics for not exported."""

from __future__ import annotations

import statistics
from typing import Any

import harness
import psutil
import ray

from ray_launcher import LaunchOptions, RayProcLauncher, sessions
from ray_launcher.cluster.spawner import ClusterSpawner

TRUE = "/bin/true"


class Quiet(ClusterSpawner):
    """A spawner without metrics."""

    def __init__(self, *args: Any) -> None:
        from ray_launcher.cluster import spawner  # noqa: PLC0415  # the module as this worker has it

        spawner.exported = lambda: False
        super().__init__(*args)


def session(spawner: type[ClusterSpawner]) -> RayProcLauncher:
    """A session with a spawner of that class."""
    sessions.ClusterSpawner = spawner  # type: ignore[misc]  # what starts it looks there
    return RayProcLauncher()


def spawner_of(launcher: RayProcLauncher) -> psutil.Process:
    """Its process."""
    handle = ray.get_actor(f"spawner-{launcher.session}", "ray_launcher")
    return psutil.Process(ray.get(handle.facts.remote())["pid"])


def cpu(process: psutil.Process) -> float:
    """Seconds that it has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", procs=2000)
    harness.start_ray()
    count, opts = options.procs, LaunchOptions(program=TRUE)

    with session(ClusterSpawner) as told, session(Quiet) as quiet:
        costs: dict[RayProcLauncher, list[float]] = {told: [], quiet: []}
        spawners = {each: spawner_of(each) for each in costs}

        def rate(launcher: RayProcLauncher) -> float:
            def work() -> None:
                launched = launcher.launch_many({f"many/{index}": opts for index in range(count)})
                assert all(result.exit_port.wait().ok for result in launched.values())

            before = cpu(spawners[launcher])
            seconds = harness.timed(work)
            costs[launcher].append((cpu(spawners[launcher]) - before) / count * 1e6)
            return count / seconds

        rate(told), rate(quiet)  # start what is started once
        figures = harness.measure({"with metrics": lambda: rate(told), "without": lambda: rate(quiet)}, options.rounds)
    harness.report(
        f"{count} x {TRUE}, all exits received",
        "procs/s",
        figures,
        {"with / without": ("with metrics", "without")},
        options.json,
        {
            "CPU time of the spawner a launch, microseconds, median": {
                "with metrics": round(statistics.median(costs[told]), 1),
                "without": round(statistics.median(costs[quiet]), 1),
            }
        },
    )


if __name__ == "__main__":
    main()
