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
#: Seconds from a look that was unclear to the next, and after which a proc that none of them has shown is gone.
_SOON = 0.005
_PATIENCE = 1.0
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

    def terminate(self, proc: Proc, timeout: float) -> None:
        """TERM the tree; KILL it `timeout` seconds from now, or when an earlier request says so."""
        if not proc.termed:
            self._term(proc, [*self._below(proc), *_trees(self._strays(proc))])
        self._kill_after(proc, timeout)

    def terminate_all(self, timeout: float) -> None:
        """`terminate` every proc, and what is left of those whose leader has exited."""
        procs = [proc for proc in self._kinship.procs() if not proc.given_up]
        below = {proc: self._below(proc) for proc in procs}
        owned = self._kinship.strays_by_owner()
        for proc in procs:
            if not proc.termed:
                self._term(proc, [*below[proc], *_trees(owned.get(proc, ()))])
            self._kill_after(proc, timeout)

    def signal(self, proc: Proc, signum: int) -> None:
        """Send `signum` to the leader's process group and to the rest of the tree."""
        self._send(proc, [*self._below(proc), *_trees(self._strays(proc))], signum)

    def kill(self, proc: Proc) -> None:
        """KILL the tree, again and again until nothing of it is left or the bound is reached."""
        now = time.monotonic()
        proc.kill_at = min(proc.kill_at, now)
        proc.kill_until = min(proc.kill_until, now + self._kill_bound)
        left = self._kill_all(proc)
        if proc.exited and not left:
            self._sweep_at(now + _SOON)  # which finds out whether that is the end
        elif now >= proc.kill_until:
            self._give_up(proc, left)
        else:  # a lone leader can fork no more: its exit is all there is to wait for
            lone = not proc.exited and len(left) <= 1
            self._set_timer(proc, proc.kill_until if lone else now + _AGAIN)

    def kill_strays(self) -> bool:
        """KILL what descends from us and is nobody's; True when there is nothing such left."""
        strays = self._kinship.strays()
        _kill_strays(strays, set())
        return not strays and not self._kinship.unclear

    def _term(self, proc: Proc, members: list[Stat]) -> None:
        proc.termed = True
        self._send(proc, members, signal.SIGTERM)
        self._send(proc, members, signal.SIGCONT)  # a stopped process cannot act on its TERM

    def _kill_after(self, proc: Proc, timeout: float) -> None:
        if timeout <= 0:
            self.kill(proc)
        elif time.monotonic() + timeout < proc.kill_at:
            proc.kill_at = time.monotonic() + timeout
            self._set_timer(proc, proc.kill_at)

    def _kill_all(self, proc: Proc) -> list[Stat]:
        """KILL whatever a look finds, and look again as long as it finds new ones: a forking tree is a race."""
        sent: set[tuple[int, int]] = set()
        left: list[Stat] = []
        enough = time.monotonic() + _ROUNDS_SECONDS
        for _ in range(_ROUNDS):
            left = self._kill_once(proc)
            if not self._kinship.unclear and all(stat.key in sent for stat in left):
                break
            if time.monotonic() >= enough:
                break
            sent.update(stat.key for stat in left)
        return left

    def _kill_once(self, proc: Proc) -> list[Stat]:
        groups: set[int] = set()
        left: list[Stat] = []
        if not proc.exited:
            _send_group(proc.pid, signal.SIGKILL)  # first of all, whatever a look into /proc brings
            groups.add(proc.pid)
            left = self._below(proc)
            for stat in left:
                if stat.group != proc.pid:
                    proctable.send(stat, signal.SIGKILL)
        return left + _kill_strays(self._strays(proc), groups)

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
            if self._dying:
                self._sweep_at(0.0)
        return leaders

    def _sweep_at(self, when: float) -> None:
        if self._sweeper is None:
            self._sweeper = self._timers.at(max(when, self._rest_until), self._sweep)

    def _sweep(self) -> None:
        """After an exit: what is left of trees without a leader gets TERM and a short grace, then KILL."""
        began = time.monotonic()
        self._sweeper = None
        owned = self._kinship.strays_by_owner()
        unclear = self._kinship.unclear
        for proc in list(self._dying):
            if proc not in owned:
                proc.unseen_since = proc.unseen_since or began
                if not unclear or began >= proc.unseen_since + _PATIENCE:
                    self._gone(proc)
                continue
            proc.unseen_since = 0.0
            if proc.kill_at <= began:
                self.kill(proc)
            else:
                if not proc.termed:
                    self._term(proc, _trees(owned[proc]))
                self._kill_after(proc, self._leftover_grace)
        now = time.monotonic()
        self._rest_until = now + _SWEEP_REST * (now - began)
        if unclear and self._dying:
            self._sweep_at(now + _SOON)

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

    def _below(self, proc: Proc) -> list[Stat]:
        """The leader and its living descendants. Look here before you look at its strays: some become such."""
        return [] if proc.exited else proctable.tree(proc.pid)

    def _strays(self, proc: Proc) -> Iterable[Stat]:
        return (stray for stray in self._kinship.strays() if self._kinship.owner(stray) is proc)

    def _send(self, proc: Proc, members: list[Stat], signum: int) -> None:
        """Signal the leader's group at once, and each process outside of it, all once."""
        if not proc.exited:  # it is ours: nobody else's group can have its number
            _send_group(proc.pid, signum)
        for stat in {stat.key: stat for stat in members}.values():
            if proc.exited or stat.group != proc.pid:
                proctable.send(stat, signum)

    def _set_timer(self, proc: Proc, when: float) -> None:
        if proc.timer is not None:
            proc.timer.cancel()
        proc.timer = self._timers.at(when, lambda: self.kill(proc))


def _trees(strays: Iterable[Stat]) -> list[Stat]:
    return [stat for stray in strays for stat in (stray, *proctable.tree(stray.pid)[1:])]


def _kill_strays(strays: Iterable[Stat], groups: set[int]) -> list[Stat]:
    """KILL strays, each as soon as it comes, with its group, however fast that forks, and all below it.

    groups: those that have been killed already.  Returns what was seen alive.
    """
    seen = []
    for stray in strays:  # an unreaped child of ours: nobody else can have its pid, or its group's number
        if stray.group not in groups and stray.group > 1:
            groups.add(stray.group)
            _send_group(stray.group, signal.SIGKILL)
        try:
            os.kill(stray.pid, signal.SIGKILL)
        except OSError:  # runs as another user by now
            pass
        below = proctable.tree(stray.pid)[1:]
        for stat in below:
            proctable.send(stat, signal.SIGKILL)
        seen += [stray, *below]
    return seen


def _send_group(group: int, signum: int) -> None:
    try:
        os.killpg(group, signum)
    except OSError:  # it has gone, or runs as another user by now
        pass
