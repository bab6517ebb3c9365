"""The last resort of an agent whose supervisor and guard were both killed: find what they left by its cookie."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection

from ray_launcher.node import proctable


def mop_up(cookies: Collection[bytes], timeout: float) -> bool:
    """SIGKILL every process that carries one of these launch cookies, and all below it, until none is left.

    Blocks for at most `timeout` seconds; returns whether all are gone. A process that has cleared its environment
    and whose parents are gone cannot be found any more.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = [stat for stat in proctable.snapshot().values() if stat.alive and proctable.cookie(stat.pid) in cookies]
        for stat in found:
            for pid in proctable.descendants(stat.pid):
                below = proctable.stat(pid)
                if below is not None:
                    proctable.send(below, signal.SIGKILL)
            proctable.send(stat, signal.SIGKILL)
        if not found or time.monotonic() >= deadline:
            return not found
        time.sleep(0.01)  # the kernel takes a moment to carry a SIGKILL out
