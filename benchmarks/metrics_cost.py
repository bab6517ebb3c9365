"""What metrics cost a launch: two sessions on one Ray, one of which takes metrics for not exported."""

from __future__ import annotations

from typing import Any

import harness

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


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", procs=2000)
    harness.start_ray()
    count, opts = options.procs, LaunchOptions(program=TRUE)

    with session(ClusterSpawner) as told, session(Quiet) as quiet:

        def rate(launcher: RayProcLauncher) -> float:
            def work() -> None:
                launched = launcher.launch_many({f"many/{index}": opts for index in range(count)})
                assert all(result.exit_port.wait().ok for result in launched.values())

            return count / harness.timed(work)

        rate(told), rate(quiet)  # start what is started once
        figures = harness.measure({"with metrics": lambda: rate(told), "without": lambda: rate(quiet)}, options.rounds)
    harness.report(
        f"{count} x {TRUE}, all exits received",
        "procs/s",
        figures,
        {"with / without": ("with metrics", "without")},
        options.json,
    )


if __name__ == "__main__":
    main()
