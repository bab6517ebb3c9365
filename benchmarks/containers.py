"""Containers of /bin/true, one after the other, launch to exit: ours, and `podman run` by hand with the same options.

Needs podman, runc and a static busybox (Debian's podman, runc, busybox-static), and root.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import podman

from ray_launcher import ActorProcLauncher, LaunchOptions, RayProcLauncher, start_spawner
from ray_launcher.spawners.container import ContainerSpawner


def median_of(count: int, once: Callable[[], None]) -> float:
    """The median of `count` measurements, in milliseconds."""
    return statistics.median(harness.timed(once) for _ in range(count)) * 1000


def by_hand() -> None:
    """What one would type."""
    command = ["podman", *podman.options().split(), "run", "--rm", "--log-driver=none", *podman.RUN_OPTIONS.split()]
    subprocess.run([*command, podman.IMAGE, "/bin/true"], check=True, stdin=subprocess.DEVNULL)


def main() -> None:
    """Measure, print, write."""
    options = harness.arguments(__doc__ or "", containers=10)
    if reason := podman.missing():
        raise SystemExit(reason)
    tempfile.tempdir = tempfile.mkdtemp(prefix="rlb-")
    try:
        podman.make_image()
        tempfile_dir, tempfile.tempdir = tempfile.tempdir, None
        harness.start_ray()
        tempfile.tempdir = tempfile_dir
        opts, count = LaunchOptions(program="/bin/true"), options.containers
        spawner = start_spawner(
            ContainerSpawner, podman.IMAGE, engine_options=podman.options(), run_options=podman.RUN_OPTIONS
        )
        launcher = ActorProcLauncher(spawner)

        def ours() -> None:
            assert launcher.launch("proc", opts).exit_port.wait(60).ok

        with RayProcLauncher() as plain:

            def process() -> None:
                assert plain.launch("proc", opts).exit_port.wait(60).ok

            cases = {"podman run by hand": by_hand, "ContainerSpawner": ours, "no container": process}
            for case in cases.values():
                case()
            measured = {name: lambda case=case: median_of(count, case) for name, case in cases.items()}
            figures = harness.measure(measured, options.rounds)
        pairs = zip(figures["ContainerSpawner"], figures["podman run by hand"], strict=True)
        more = statistics.median(ours - hand for ours, hand in pairs)
        harness.report(
            "launch to exit of /bin/true, in sequence",
            "ms",
            figures,
            {"ContainerSpawner / podman run": ("ContainerSpawner", "podman run by hand")},
            options.json,
            {"containers per measurement": count, "ContainerSpawner minus podman run, ms": round(more, 1)},
        )
    finally:
        shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)


if __name__ == "__main__":
    main()
