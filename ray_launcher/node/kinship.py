"""Whose is it: which processes belong to a proc's tree.

Every descendant of a leader is a descendant of the supervisor, which is a child subreaper: a process whose parent
has gone becomes the supervisor's own child, a *stray*. So a proc's tree is its leader and the strays that are its
own, each with all descendants. A stray tells whose it is by its session, by the launch's cookie in its environment,
or by the ancestry last sampled.
"""

from __future__ import annotations

import os
import time

from ray_launcher.node import proctable
from ray_launcher.node.proctable import Stat
from ray_launcher.node.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ray_launcher.node.timelimit import TimeLimit
    from ray_launcher.node.timers import Timer


class Proc:
    """One launch, from its exec until nothing of its tree is left. Keeps nothing of its argv and environment."""

    __slots__ = (
        "exited",
        "given_up",
        "kill_at",
        "kill_until",
        "note",
        "outputs",
        "pid",
        "signals",
        "started",
        "stderr_begin",
        "tail_lines",
        "termed",
        "time_limit",
        "timer",
        "token",
        "unseen_since",
    )

    def __init__(self, spec: Spec, pid: int, stderr_begin: int = 0) -> None:
        self.token, self.note = spec.token, spec.note
        self.outputs = (spec.stdout, spec.stderr)
        self.stderr_begin = stderr_begin
        self.tail_lines = spec.tail_lines
        self.pid = pid
        self.started = time.time()
        self.exited = False  # the leader has been reaped
        self.termed = False
        self.given_up = False  # its leader outlived SIGKILL and has been reported
        self.kill_at = float("inf")  # when TERM turns into KILL
        self.kill_until = float("inf")  # when repeating KILL is given up
        self.timer: Timer | None = None  # the only one: escalation, then repetition
        self.time_limit: TimeLimit | None = None
        self.signals: dict[bytes, int] = {}  # by who sent them: the last message that asked for one
        self.unseen_since = 0.0  # the first of the last looks in a row that were unclear and did not show it


class Kinship:
    """Tells whose a process is. Leaders and strays are ours until we reap them, so their pids cannot be another's."""

    def __init__(self) -> None:
        self.unclear = False  # the last look may have missed somebody
        self.leaders: dict[int, Proc] = {}  # by pid, until reaped
        self._by_token: dict[bytes, Proc] = {}  # until nothing of the tree is left
        self._by_session: dict[int, Proc] = {}
        self._sampled: dict[tuple[int, int], Proc] = {}  # by pid and start time
        self._newest = b""  # the last process that there was then

    def add(self, proc: Proc) -> None:
        """A leader has been started."""
        self.leaders[proc.pid] = self._by_token[proc.token] = self._by_session[proc.pid] = proc

    def remove(self, proc: Proc) -> None:
        """Nothing of its tree is left, or nothing that can be helped."""
        self._by_token.pop(proc.token, None)
        if self._by_session.get(proc.pid) is proc:  # not a later one with its pid
            del self._by_session[proc.pid]

    def __contains__(self, token: bytes) -> bool:
        return token in self._by_token

    def procs(self) -> list[Proc]:
        """Those of which something is left."""
        return list(self._by_token.values())

    def strays(self) -> list[Stat]:
        """Our children that are no leaders. This begins a look at them.

        A zombie among them is reaped and makes the look unclear: what it left may have become ours after the list of
        our children was read.
        """
        self.unclear = False
        strays = []
        for pid in proctable.children(os.getpid()):
            if pid not in self.leaders:
                stat = proctable.stat(pid)
                if stat is not None and stat.alive:
                    strays.append(stat)
                else:
                    self.unclear = True
                    _reap(pid)
        return strays

    def strays_by_owner(self) -> dict[Proc | None, list[Stat]]:
        """All strays; nobody's under None."""
        owned: dict[Proc | None, list[Stat]] = {}
        for stray in self.strays():
            owned.setdefault(self.owner(stray), []).append(stray)
        return owned

    def owner(self, stray: Stat) -> Proc | None:
        """Whose stray it is; None when nothing tells, or nothing else of that proc is known any more."""
        proc = self._by_session.get(stray.session)
        if proc is None:
            proc = self._by_cookie(stray)
        if proc is None:
            proc = self._sampled.get(stray.key)
        return proc if proc is not None and proc.token in self._by_token else None

    def _by_cookie(self, stray: Stat) -> Proc | None:
        try:
            cookie = proctable.cookie(stray.pid)
        except proctable.HalfwayError:
            self.unclear = True
            return None
        return self._by_token.get(cookie.rsplit(b"/", 1)[-1]) if cookie is not None else None

    def sample(self) -> None:
        """Note who descends from whom, for the day when a process has neither parent, session nor cookie.

        Costs next to nothing where no process has been started since.
        """
        newest = proctable.newest()
        if newest and newest == self._newest:
            return
        self._newest = newest
        sampled: dict[tuple[int, int], Proc] = {}
        for family in proctable.families(proctable.snapshot(), os.getpid()):
            proc = self.leaders.get(family[0].pid) or self.owner(family[0])
            if proc is not None:
                for member in family:
                    sampled[member.key] = proc
        self._sampled = sampled


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # it has been reaped
