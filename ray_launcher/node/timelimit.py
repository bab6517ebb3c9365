"""The time limit of one proc: a signal ahead of it, TERM when it is reached, KILL a grace later.

The supervisor keeps the clock, so it runs on whatever happens to the agent and all above it.
"""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False  # typing's own costs the supervisor a megabyte
if TYPE_CHECKING:
    from ray_launcher.node.kinship import Proc
    from ray_launcher.node.limits import Limits
    from ray_launcher.node.procs import Procs
    from ray_launcher.node.timers import Timer, Timers

#: What lines of our own in a stderr tail begin with.
MARK = "[ray_launcher] "


class TimeLimit:
    """Runs from now on. said: what was done, in lines for the end of the stderr tail."""

    __slots__ = ("_pending", "said")

    def __init__(self, limits: Limits, proc: Proc, procs: Procs, timers: Timers) -> None:
        self.said: list[str] = []
        self._pending: list[Timer] = []
        if limits.time is None:
            return
        end = time.monotonic() + limits.time
        limit, grace, lead = limits.time, limits.grace, limits.lead
        self._pending.append(timers.at(end, lambda: self._reached(proc, procs, limit, grace)))
        if limits.signum is not None:
            signum = limits.signum
            ahead = f"{_shown(lead)} before the time limit of {_shown(limit)}"
            self._pending.append(timers.at(end - lead, lambda: self._ahead(proc, signum, ahead)))

    def over(self) -> list[str]:
        """The leader has gone: nothing more is done. Returns what was."""
        for timer in self._pending:
            timer.cancel()
        return self.said

    def _ahead(self, proc: Proc, signum: int, when: str) -> None:
        """To the leader alone: it is an unreaped child of ours, nobody else can have its pid."""
        try:
            os.kill(proc.pid, signum)
        except OSError:  # runs as another user by now
            return
        self.said.append(f"{MARK}{_name(signum)} sent {when}")

    def _reached(self, proc: Proc, procs: Procs, limit: float, grace: float) -> None:
        sent = "" if proc.termed else ": SIGTERM sent"
        self.said.append(f"{MARK}time limit of {_shown(limit)} reached{sent}")
        procs.terminate(proc, grace)


def _shown(seconds: float) -> str:
    return f"{seconds:.10g} s"


def _name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
