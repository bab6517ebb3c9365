"""How many short procs a second: ours one by one and in one message, a bare Popen loop, and one Ray task per proc."""

from __future__ import annotations

import subprocess

import harness
import ray

from ray_launcher import LaunchOptions, RayProcLauncher

TRUE = "/bin/true"


@ray.remote(num_cpus=1)
def in_a_task() -> int:
    """What one writes by hand."""
    return subprocess.run([TRUE], check=False).returncode


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", procs=1000)
    harness.start_ray()
    count, opts = options.procs, LaunchOptions(program=TRUE)

    def rate(seconds: float) -> float:
        return count / seconds

    with RayProcLauncher() as launcher:

        def one_by_one() -> None:
            ports = [launcher.launch(f"one/{index}", opts).exit_port for index in range(count)]
            assert all(port.wait().ok for port in ports)

        def in_one_message() -> None:
            launched = launcher.launch_many({f"many/{index}": opts for index in range(count)})
            assert all(result.exit_port.wait().ok for result in launched.values())

        def popen() -> None:
            assert all(subprocess.Popen([TRUE]).wait() == 0 for _ in range(count))

        def ray_tasks() -> None:
            assert ray.get([in_a_task.remote() for _ in range(count)]) == [0] * count

        one_by_one(), in_one_message(), ray_tasks()  # start what is started once
        figures = harness.measure(
            {
                "launch": lambda: rate(harness.timed(one_by_one)),
                "launch_many": lambda: rate(harness.timed(in_one_message)),
                "Popen + wait": lambda: rate(harness.timed(popen)),
                "Ray task running Popen, workers warm": lambda: rate(harness.timed(ray_tasks)),
            },
            options.rounds,
        )
    harness.report(
        f"{count} x {TRUE}, all exits received",
        "procs/s",
        figures,
        {
            "launch / Popen": ("launch", "Popen + wait"),
            "launch_many / Popen": ("launch_many", "Popen + wait"),
            "launch / Ray task": ("launch", "Ray task running Popen, workers warm"),
        },
        options.json,
    )


if __name__ == "__main__":
    main()
