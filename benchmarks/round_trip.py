"""One proc after the other, launch to exit: ours, Popen, a Ray task, and Ray Jobs."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable

import harness
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from ray_launcher import LaunchOptions, RayProcLauncher

TRUE = "/bin/true"


@ray.remote(num_cpus=1)
def in_a_task() -> int:
    """What one writes by hand."""
    return subprocess.run([TRUE], check=False).returncode


def median_of(count: int, once: Callable[[], None]) -> float:
    """The median of `count` measurements, in milliseconds."""
    return statistics.median(harness.timed(once) for _ in range(count)) * 1000


def run_jobs(count: int) -> list[float]:
    """Milliseconds from submitting a Ray Job to its end, on a Ray of their own: they need its dashboard."""
    context = ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False, logging_level="ERROR")
    client = JobSubmissionClient(f"http://{context.dashboard_url}")
    run_job(client, time.monotonic() + 60)  # the first one waits for the dashboard's agent
    taken = [harness.timed(lambda: run_job(client, 0)) * 1000 for _ in range(count)]
    ray.shutdown()
    return taken


def run_job(client: JobSubmissionClient, patience: float) -> None:
    """Submit, and wait for the end; until `patience` (monotonic) a refused submission is tried again."""
    while True:
        try:
            job = client.submit_job(entrypoint=TRUE)
            break
        except RuntimeError:
            if time.monotonic() > patience:
                raise
            time.sleep(0.5)
    while client.get_job_status(job) not in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}:
        time.sleep(0.01)


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", procs=200, jobs=3)
    harness.start_ray()
    opts, count = LaunchOptions(program=TRUE), options.procs
    with RayProcLauncher() as launcher:

        def launch() -> None:
            assert launcher.launch("one", opts).exit_port.wait().ok

        def task() -> None:
            assert ray.get(in_a_task.remote()) == 0

        def popen() -> None:
            assert subprocess.Popen([TRUE]).wait() == 0

        launch(), task()
        figures = harness.measure(
            {
                "launch, wait": lambda: median_of(count, launch),
                "Popen, wait": lambda: median_of(count, popen),
                "Ray task running Popen, worker warm": lambda: median_of(count, task),
            },
            options.rounds,
        )
    ray.shutdown()
    if options.jobs:
        figures["Ray Job"] = run_jobs(options.jobs)
    harness.report(
        f"{TRUE}, one after the other, p50 of {count}",
        "milliseconds",
        figures,
        {
            "launch / Popen": ("launch, wait", "Popen, wait"),
            "Ray task / Popen": ("Ray task running Popen, worker warm", "Popen, wait"),
            **({"Ray Job / Popen": ("Ray Job", "Popen, wait")} if options.jobs else {}),
        },
        options.json,
    )


if __name__ == "__main__":
    main()
