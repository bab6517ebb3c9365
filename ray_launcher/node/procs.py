"""The life and death of process trees: how a proc is ended, and when nothing of it is left.

Signals go to leaders and strays, which are ours until we reap them (see `kinship`), or through a pidfd that is
checked against what was seen.
"""

from __future__ import annotations

import os
import signal
import time

from ray_launcher.node import proctable
from ray_launcher.node.kinship import Kinship, Proc
from ray_launcher.node.proctable import Stat
from ray_launcher.node.timers import Timer, Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Seconds between two looks at who descends from whom, the last resort for telling whose a stray is.
SAMPLE_PERIOD = 2.5
#: Looks in a row at a tree that forks while it is killed, before the loop serves others and comes back.
_ROUNDS = 64
_ROUNDS_SECONDS = 0.1
_AGAIN = 0.05
#: Looks for leftovers take at most the 1 + Nth part of the time, however many exits there are.
_SWEEP_REST = 4


class Procs:
    """All procs of one supervisor.

    leftover_grace: seconds between TERM and KILL for what is left of a tree when its leader has exited.
    kill_bound: seconds of repeated SIGKILL after which a process is given up.
    stuck(proc, pids) is called for trees that SIGKILL does not end, gone(proc) when nothing of a tree is left.
    """

    def __init__(
        self,
        timers: Timers,
        leftover_grace: float,
        kill_bound: float,
        stuck: Callable[[Proc, list[int]], None],
        gone: Callable[[Proc], None],
    ) -> None:
        self.running: dict[bytes, Proc] = {}  # by token: the leader lives, and has not been given up
        self._kinship = Kinship()
        self._dying: set[Proc] = set()  # leader reaped, some of the tree left
        self._timers = timers
        self._leftover_grace = leftover_grace
        self._kill_bound = kill_bound
        self._stuck = stuck
        self._gone_call = gone
        self._sampler: Timer | None = None
        self._sweeper: Timer | None = None
        self._rest_until = 0.0

    def __contains__(self, token: bytes) -> bool:
        """Whether something of that launch is left."""
        return token in self._kinship

    @property
    def ended(self) -> bool:
        """Whether nothing is left, save what has been given up."""
        return all(proc.given_up for proc in self._kinship.procs())

    def add(self, proc: Proc) -> None:
        """Take on a leader that has just been started."""
        self.running[proc.token] = proc
        self._kinship.add(proc)
        if self._sampler is None:
            self._sampler = self._timers.after(SAMPLE_PERIOD, self._sample)

    # -- the end, asked for ---------------------------------------------------------------------------------------

    def terminate(self, proc: Proc, timeout: float, strays: Iterable[Stat] | None = None) -> None:
        """TERM the tree; KILL it `timeout` seconds from now, or when an earlier request says so.

        strays: its own, where they are known.
        """
        if not proc.termed:
            proc.termed = True
            strays = list(self._strays(proc)) if strays is None else strays
            self._send(proc, signal.SIGTERM, strays)
            self._send(proc, signal.SIGCONT, strays)  # a stopped process cannot act on its TERM
        if timeout <= 0:
            self.kill(proc)
        elif time.monotonic() + timeout < proc.kill_at:
            proc.kill_at = time.monotonic() + timeout
            self._set_timer(proc, proc.kill_at)

    def terminate_all(self, timeout: float) -> None:
        """`terminate` every proc."""
        owned = self._kinship.strays_by_owner()
        for proc in list(self.running.values()):
            self.terminate(proc, timeout, owned.get(proc, ()))

    def signal(self, proc: Proc, signum: int) -> None:
        """Send `signum` to the leader's process group and to the rest of the tree."""
        self._send(proc, signum, self._strays(proc))

    def kill(self, proc: Proc) -> None:
        """KILL the tree, again and again until nothing of it is left or the bound is reached."""
        now = time.monotonic()
        proc.kill_at = min(proc.kill_at, now)
        proc.kill_until = min(proc.kill_until, now + self._kill_bound)
        left = self._kill_all(proc)
        if proc.exited and not left:
            self._gone(proc)
        elif now >= proc.kill_until:
            self._give_up(proc, left)
        else:  # a lone leader can fork no more: its exit is all there is to wait for
            lone = not proc.exited and len(left) <= 1
            self._set_timer(proc, proc.kill_until if lone else now + _AGAIN)

    def kill_strays(self) -> bool:
        """KILL what descends from us and is nobody's; True when there is nothing such left."""
        strays = self._kinship.strays()
        for stray in strays:
            self._send_stray(stray, signal.SIGKILL, set())
        return not strays

    def _kill_all(self, proc: Proc) -> list[Stat]:
        """KILL whatever a look finds, and look again as long as it finds new ones: a forking tree is a race."""
        sent: set[tuple[int, int]] = set()
        left: list[Stat] = []
        enough = time.monotonic() + _ROUNDS_SECONDS
        for _ in range(_ROUNDS):
            left = self._send(proc, signal.SIGKILL, self._strays(proc))
            if all(stat.key in sent for stat in left) or time.monotonic() >= enough:
                break
            sent.update(stat.key for stat in left)
        return left

    # -- the end, noticed -----------------------------------------------------------------------------------------

    def reap(self) -> list[tuple[Proc, int]]:
        """Reap whatever has exited; returns the leaders among it with their wait statuses. Then comes `sweep`."""
        leaders = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            proc = self._kinship.leaders.pop(pid, None)
            if proc is not None:
                proc.exited = True
                proc.kill_until = float("inf")  # what it leaves gets a bound of its own
                self.running.pop(proc.token, None)
                self._dying.add(proc)
                leaders.append((proc, status))
            if self._dying and self._sweeper is None:
                self._sweeper = self._timers.at(self._rest_until, self._sweep)
        return leaders

    def _sweep(self) -> None:
        """After an exit: what is left of trees without a leader gets TERM and a short grace, then KILL."""
        began = time.monotonic()
        self._sweeper = None
        owned = self._kinship.strays_by_owner()
        for proc in list(self._dying):
            if proc not in owned:
                self._gone(proc)
            elif proc.kill_at <= began:
                self.kill(proc)
            else:
                self.terminate(proc, self._leftover_grace, owned[proc])
        now = time.monotonic()
        self._rest_until = now + _SWEEP_REST * (now - began)

    def _gone(self, proc: Proc) -> None:
        self._forget(proc)
        self._gone_call(proc)

    def _give_up(self, proc: Proc, left: list[Stat]) -> None:
        proc.given_up = True
        self.running.pop(proc.token, None)
        self._stuck(proc, [stat.pid for stat in left] or [proc.pid])
        if proc.exited:
            self._gone(proc)

    def _forget(self, proc: Proc) -> None:
        if proc.timer is not None:
            proc.timer.cancel()  # and so breaks the cycle proc - timer - call - proc
        self._dying.discard(proc)
        self._kinship.remove(proc)

    def _sample(self) -> None:
        self._kinship.sample()
        alive = self._kinship.procs()
        self._sampler = self._timers.after(SAMPLE_PERIOD, self._sample) if alive else None

    # -- sending --------------------------------------------------------------------------------------------------

    def _strays(self, proc: Proc) -> Iterable[Stat]:
        return (stray for stray in self._kinship.strays() if self._kinship.owner(stray) is proc)

    def _send(self, proc: Proc, signum: int, strays: Iterable[Stat]) -> list[Stat]:
        """Signal the tree; returns the living processes seen in it.

        A group is signalled at once, however fast it forks, and each process outside of it once.
        """
        groups: set[int] = set()
        seen = []
        if not proc.exited:  # it is ours: nobody else's group can have its number
            _send_group(proc.pid, signum)
            groups.add(proc.pid)
            leader = proctable.stat(proc.pid)
            seen += [leader] if leader is not None and leader.alive else []
            seen += self._send_below(proc.pid, signum, groups)
        for stray in strays:
            seen += self._send_stray(stray, signum, groups)
        return seen

    def _send_stray(self, stray: Stat, signum: int, groups: set[int]) -> list[Stat]:
        if signum == signal.SIGKILL and stray.group not in groups and stray.group > 1:
            _send_group(stray.group, signum)  # an unreaped child of ours is in it
        if signum == signal.SIGKILL or stray.group not in groups:
            try:
                os.kill(stray.pid, signum)
            except OSError:
                pass
        return [stray, *self._send_below(stray.pid, signum, groups)]

    def _send_below(self, root: int, signum: int, groups: set[int]) -> list[Stat]:
        found = (proctable.stat(pid) for pid in proctable.descendants(root))
        seen = [stat for stat in found if stat is not None and stat.alive]
        for stat in seen:
            if stat.group not in groups:
                proctable.send(stat, signum)
        return seen

    def _set_timer(self, proc: Proc, when: float) -> None:
        if proc.timer is not None:
            proc.timer.cancel()
        proc.timer = self._timers.at(when, lambda: self.kill(proc))


def _send_group(group: int, signum: int) -> None:
    try:
        os.killpg(group, signum)
    except OSError:  # it has gone, or runs as another user by now
        pass
