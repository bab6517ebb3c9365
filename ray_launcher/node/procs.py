"""The life and death of process trees: who belongs to a proc, how it is ended, when nothing of it is left.

Every descendant of a leader is a descendant of the supervisor, which is a child subreaper: a process whose parent
has gone becomes the supervisor's own child, a *stray*. So a proc's tree is its leader and the strays that are its
own, each with all descendants. Leaders and strays stay ours until we reap them, so their pids cannot be another's;
deeper ones are signalled through a pidfd that is checked against what was seen.
"""

from __future__ import annotations

import os
import signal
import time

from ray_launcher.node import proctable
from ray_launcher.node.proctable import Stat
from ray_launcher.node.spec import Spec
from ray_launcher.node.timers import Timer, Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds between TERM and KILL for what is left of a tree when its leader has exited.
LEFTOVER_GRACE = 2.0
#: Seconds of repeated SIGKILL after which a process is reported as unkillable (uninterruptible sleep, state D).
KILL_BOUND = 10.0
#: Seconds between two looks at who descends from whom, the last resort for telling whose a stray is.
SAMPLE_PERIOD = 2.5
#: Looks in a row at a tree that forks while it is killed, before the loop serves others and comes back.
_ROUNDS = 64
_AGAIN = 0.05


class Proc:
    """One launch, from its fork until nothing of its tree is left."""

    __slots__ = ("exited", "kill_at", "kill_until", "pid", "spec", "started", "termed", "timer", "unkillable")

    def __init__(self, spec: Spec, pid: int) -> None:
        self.spec = spec
        self.pid = pid
        self.started = time.time()
        self.exited = False  # the leader has been reaped
        self.termed = False
        self.kill_at = float("inf")  # when TERM turns into KILL
        self.kill_until = float("inf")  # when repeating KILL is given up
        self.timer: Timer | None = None  # the only one: escalation, then repetition
        self.unkillable = False


class Procs:
    """All procs of one supervisor. `gave_up(proc, pids)` is called for trees that SIGKILL does not end."""

    def __init__(self, timers: Timers, gave_up: Callable[[Proc, list[int]], None]) -> None:
        self.by_token: dict[bytes, Proc] = {}  # leaders alive
        self._by_pid: dict[int, Proc] = {}
        self._dying: dict[bytes, Proc] = {}  # by token: leader reaped, some of the tree left
        self._sampled: dict[int, tuple[int, Proc]] = {}  # pid: (start time, proc)
        self._sampler: Timer | None = None
        self._timers = timers
        self._gave_up = gave_up

    def __len__(self) -> int:
        return len(self._by_pid) + len(self._dying)

    def add(self, spec: Spec, pid: int) -> Proc:
        proc = Proc(spec, pid)
        self.by_token[spec.token] = self._by_pid[pid] = proc
        if self._sampler is None:
            self._sampler = self._timers.after(SAMPLE_PERIOD, self._sample)
        return proc

    # -- the end, asked for ---------------------------------------------------------------------------------------

    def terminate(self, proc: Proc, timeout: float) -> None:
        """TERM the tree; KILL it `timeout` seconds from now, or when an earlier request says so."""
        if not proc.termed:
            proc.termed = True
            self._signal(proc, signal.SIGTERM)
            self._signal(proc, signal.SIGCONT)  # a stopped process cannot act on its TERM
        if timeout <= 0:
            self.kill(proc)
        else:
            self._kill_by(proc, time.monotonic() + timeout)

    def kill(self, proc: Proc) -> None:
        """KILL the tree, again and again until nothing of it is left or the bound is reached."""
        now = time.monotonic()
        proc.kill_at = min(proc.kill_at, now)
        proc.kill_until = min(proc.kill_until, now + KILL_BOUND)
        left = self._kill_all(proc)
        if left and now >= proc.kill_until:
            self._give_up(proc, left)
        elif left:
            # A lone leader can fork no more: its exit is all there is to wait for.
            lone = not proc.exited and len(left) == 1
            self._set_timer(proc, proc.kill_until if lone else now + _AGAIN)
        elif proc.exited:
            self._gone(proc)

    def _kill_all(self, proc: Proc) -> list[Stat]:
        """KILL whatever a look finds, and look again as long as it finds new ones: a forking tree is a race."""
        sent: set[tuple[int, int]] = set()
        left: list[Stat] = []
        for _ in range(_ROUNDS):
            left = self.members(proc)
            if all((stat.pid, stat.start) in sent for stat in left):
                break
            self._send(proc, left, signal.SIGKILL)
            sent.update((stat.pid, stat.start) for stat in left)
        return left

    def signal(self, proc: Proc, signum: int) -> None:
        """Send `signum` to the leader's process group and to the rest of the tree."""
        self._signal(proc, signum)

    def kill_strays(self) -> bool:
        """KILL what descends from us and is nobody's; True when there is nothing such left."""
        strays = self.strays()
        for stray in strays:
            for pid in (stray.pid, *proctable.descendants(stray.pid)):
                found = proctable.stat(pid)
                if found is not None:
                    proctable.send(found, signal.SIGKILL)
        return not strays

    # -- the end, noticed -----------------------------------------------------------------------------------------

    def reap(self) -> list[tuple[Proc, int]]:
        """Reap whatever has exited; returns the leaders among it with their wait statuses."""
        leaders = []
        reaped = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            reaped = True
            proc = self._by_pid.pop(pid, None)
            if proc is not None:
                leaders.append((proc, status))
                proc.exited = True
                del self.by_token[proc.spec.token]
                self._dying[proc.spec.token] = proc
        if reaped and self._dying:
            self._sweep()
        return leaders

    def _sweep(self) -> None:
        """After an exit: what is left of trees without a leader gets TERM and a short grace, then KILL."""
        owners = {self._owner(stray) for stray in self.strays()}
        for proc in list(self._dying.values()):
            if proc not in owners:
                self._gone(proc)
            elif proc.kill_at <= time.monotonic() and not proc.unkillable:
                self._set_timer(proc, 0.0)
            elif not proc.unkillable:
                self.terminate(proc, LEFTOVER_GRACE)

    def _gone(self, proc: Proc) -> None:
        if proc.timer is not None:
            proc.timer.cancel()  # and so breaks the cycle proc - timer - call - proc
        self._dying.pop(proc.spec.token, None)

    def _give_up(self, proc: Proc, left: list[Stat]) -> None:
        proc.unkillable = True
        self._gave_up(proc, [stat.pid for stat in left])
        if proc.exited:
            self._gone(proc)

    # -- whose is it ----------------------------------------------------------------------------------------------

    def strays(self) -> list[Stat]:
        """Our children that are no leaders, zombies left out."""
        found = (proctable.stat(pid) for pid in proctable.children(os.getpid()) if pid not in self._by_pid)
        return [stat for stat in found if stat is not None and stat.alive]

    def members(self, proc: Proc) -> list[Stat]:
        """The living processes of a proc's tree, its leader first."""
        roots = [] if proc.exited else [proc.pid]
        roots += [stray.pid for stray in self.strays() if self._owner(stray) is proc]
        pids = [pid for root in roots for pid in (root, *proctable.descendants(root))]
        found = (proctable.stat(pid) for pid in dict.fromkeys(pids))
        return [stat for stat in found if stat is not None and stat.alive]

    def _owner(self, stray: Stat) -> Proc | None:
        """By session, then by cookie, then by the ancestry last sampled."""
        for proc in (self._by_pid.get(stray.session), *self._dying.values()):
            if proc is not None and proc.pid == stray.session:
                return proc
        cookie = proctable.cookie(stray.pid)
        if cookie is not None:
            token = cookie.rsplit(b"/", 1)[-1]
            proc = self.by_token.get(token) or self._dying.get(token)
            if proc is not None:
                return proc
        start, sampled = self._sampled.get(stray.pid, (0, None))
        return sampled if start == stray.start else None

    def _sample(self) -> None:
        table = proctable.snapshot()
        below: dict[int, list[int]] = {}
        for stat in table.values():
            below.setdefault(stat.ppid, []).append(stat.pid)
        sampled: dict[int, tuple[int, Proc]] = {}
        for pid in below.get(os.getpid(), ()):
            proc = self._by_pid.get(pid) or self._owner(table[pid])
            queue = [pid] if proc is not None else []
            for member in queue:
                sampled[member] = (table[member].start, proc)  # type: ignore[assignment]  # not None: see queue
                queue.extend(below.get(member, ()))
        self._sampled = sampled
        self._sampler = self._timers.after(SAMPLE_PERIOD, self._sample) if self._by_pid or self._dying else None

    # -- sending --------------------------------------------------------------------------------------------------

    def _signal(self, proc: Proc, signum: int) -> None:
        self._send(proc, self.members(proc), signum)

    def _send(self, proc: Proc, members: list[Stat], signum: int) -> None:
        if not proc.exited:  # the whole group at once, however fast it forks; the leader is unreaped, so it is ours
            os.killpg(proc.pid, signum)
        for stat in members:
            if proc.exited or (stat.pid != proc.pid and stat.group != proc.pid):
                proctable.send(stat, signum)

    def _kill_by(self, proc: Proc, when: float) -> None:
        if when < proc.kill_at:
            proc.kill_at = when
            self._set_timer(proc, when)

    def _set_timer(self, proc: Proc, when: float) -> None:
        if proc.timer is not None:
            proc.timer.cancel()
        proc.timer = self._timers.at(when, lambda: self.kill(proc))

