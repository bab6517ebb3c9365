"""The guard: the supervisor's parent, which does nothing until the supervisor dies and then kills what it leaves.

It is a child subreaper, so everything below a dead supervisor becomes its own: leaders, grandchildren, and whatever
escaped with setsid or a double fork. A parent-death signal would reach the leaders only. The other way round, the
supervisor takes the guard's death as the order to stop. Whoever holds the directory's lock is one of the two: once
it is free, nothing of theirs is left.
"""

from __future__ import annotations

import os
import signal
import time

from ray_launcher.node import process, proctable

#: Seconds of repeated SIGKILL after which the guard leaves what the kernel will not end.
_KILL_BOUND = 10.0


def fork_guarded() -> None:
    """Fork: return in the child, the supervisor to be; the parent stays as its guard and never returns."""
    process.become_subreaper()
    guard = os.getpid()
    pid = os.fork()
    if pid == 0:
        process.die_with_parent(signal.SIGTERM)
        if os.getppid() != guard:
            os._exit(1)
        return
    try:
        _guard(pid)
    finally:
        os._exit(0)


def _guard(supervisor: int) -> None:
    process.own_signals(lambda _signum, _frame: None)
    for fd in (0, 1, 2):
        os.close(fd)
    while os.wait()[0] != supervisor:
        pass
    give_up = time.monotonic() + _KILL_BOUND
    while time.monotonic() < give_up:
        for pid in proctable.descendants(os.getpid()):
            found = proctable.stat(pid)
            if found is not None and found.alive:
                proctable.send(found, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)  # the kernel takes a moment to carry a SIGKILL out
