"""The last resort of an agent whose supervisor was killed: find what it, and its guard if that was too, have left."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from ray_launcher.node import logfiles, proctable


def mop_up(prefix: bytes, timeout: float) -> bool:
    """SIGKILL every process whose launch cookie begins with `prefix`, and all below it, until none is left.

    Blocks for at most `timeout` seconds; returns whether all are gone. A process that has cleared its environment
    and whose parents are gone cannot be found any more.
    """
    deadline = time.monotonic() + timeout
    looks = 0  # in a row without finding one: within an exec a process does not show its cookie
    while looks < 2:
        found = [stat for stat in proctable.snapshot().values() if stat.alive and _cookie(stat.pid).startswith(prefix)]
        for stat in found:
            for pid in proctable.descendants(stat.pid):
                below = proctable.stat(pid)
                if below is not None:
                    proctable.send(below, signal.SIGKILL)
            proctable.send(stat, signal.SIGKILL)
        if found and time.monotonic() >= deadline:
            return False
        looks = 0 if found else looks + 1
        time.sleep(0.01)  # the kernel takes a moment to carry a SIGKILL out
    return True


def _cookie(pid: int) -> bytes:
    try:
        return proctable.cookie(pid) or b""
    except proctable.HalfwayError:  # or a thread of the kernel's
        return b""


def remove_spare(logs: Path) -> None:
    """Remove the log files that supervisors set aside which are no more."""
    for path in logs.glob(f"{logfiles.PREFIX.decode()}*-*"):
        supervisor = path.name.removeprefix(logfiles.PREFIX.decode()).partition("-")[0]
        if not Path("/proc", supervisor).exists():
            path.unlink(missing_ok=True)
