"""Who is who in a session: its living procs by id and by token."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from datetime import datetime, timezone

from ray_launcher.cluster.link import Link
from ray_launcher.cluster.wire import Started
from ray_launcher.desk import LaunchKey
from ray_launcher.exits import ExitReport, ProcExitResult, decode_exit
from ray_launcher.info import Attempt, ProcInfo, ProcState
from ray_launcher.ranks import Member
from ray_launcher.readiness import ReadyWhen

#: Lines of stderr that are kept of an attempt after which there was another.
_TAIL = 10


@dataclasses.dataclass(eq=False)
class Proc:
    """One attempt of a launch, as the spawner sees it. Times are those of `time.time`.

    following: where a restart may follow, what comes after this attempt: the next one, or None.
    """

    proc_id: str
    token: str
    key: LaunchKey
    end: asyncio.Future[ExitReport]
    on_change: Callable[[Proc], None]
    rank_of: Member | None = None  # its gang, if it is one of a gang
    link: Link | None = None  # None: its node is not chosen yet
    placed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    asked_to_end: bool = False
    waits_for: str | None = None
    told: ProcState | None = None  # the last state that was told
    member: Member | None = None
    sought: bool = False  # somebody sees to its node
    earlier: tuple[Attempt, ...] = ()
    following: asyncio.Future[Proc | None] | None = None
    forget: bool = False  # once it has ended
    ready_when: ReadyWhen | None = None  # if that is to be found out
    ready: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    pid: int | None = None
    started: float | None = None
    exited: float | None = None

    def place(self, link: Link) -> None:
        """Its node is chosen."""
        self.link, self.sought = link, True
        self.placed.set()
        self.on_change(self)

    def ask_to_end(self) -> None:
        """Somebody wants it to."""
        self.asked_to_end = True
        self.on_change(self)

    def runs(self, news: Started) -> None:
        """Its process has been started; perhaps it is only on its way there (pid 0)."""
        if news.pid:
            self.pid, self.started = news.pid, news.when
            if self.ready_when is None:
                self.ready.set()
            self.on_change(self)

    def finish(self, report: ExitReport, when: float | None = None) -> None:
        """The one end; a second does nothing. when: by our own clock; None: now."""
        if not self.end.done():
            self.exited = time.time() if when is None else when
            self.end.set_result(report)
            self.on_change(self)

    def follow(self, another: Proc | None) -> None:
        """It has ended, and this attempt follows, or none."""
        if self.following is not None:
            self.following.set_result(another)

    @property
    def attempt(self) -> int:
        """How often its launch has been restarted."""
        return 0 if self.member is None else self.member.attempt

    @property
    def may_follow(self) -> bool:
        """Whether there is another attempt, or may be."""
        return self.following is not None and not (self.following.done() and self.following.result() is None)

    async def after(self) -> Proc | None:
        """The next attempt; None once it has ended and there is none."""
        await asyncio.shield(self.end)
        return None if self.following is None else await asyncio.shield(self.following)

    def past(self) -> Attempt:
        """What is to be remembered of it when there is another attempt."""
        info = self.info()
        result = info.result or decode_exit(self.end.result())
        tail = None if result.stderr_tail is None else result.stderr_tail[-_TAIL:]
        result = dataclasses.replace(result, stderr_tail=tail)
        return Attempt(info.node_id, info.node_ip, info.pid, info.started_at, info.exited_at, result)

    def info(self) -> ProcInfo:
        """What there is to know of it now."""
        node = None if self.link is None else self.link.node
        member = self.rank_of
        return ProcInfo(
            proc_id=self.proc_id,
            state=self.state,
            node_id=None if node is None else node.node_id,
            node_ip=None if node is None else node.ip,
            pid=self.pid,
            started_at=_utc(self.started),
            exited_at=_utc(self.exited),
            result=self._result(),
            gang_id=None if member is None else member.shape.gang_id,
            rank=None if member is None else member.rank,
            restarts=self.attempt,
            ready=self.ready.is_set() and not self.end.done(),
            waits_for=self.waits_for,
            attempts=self.earlier,
        )

    @property
    def state(self) -> ProcState:
        """See `ProcInfo`."""
        if self.end.done():
            return "EXITED"
        if self.link is None:
            return "PENDING"
        if self.asked_to_end:
            return "TERMINATING"
        return "STARTING" if self.pid is None else "RUNNING"

    def _result(self) -> ProcExitResult | None:
        return decode_exit(self.end.result()) if self.end.done() and not self.end.cancelled() else None


class Roster:
    """The procs of one session. on_change(proc): called when the state of one may be another."""

    def __init__(self, on_change: Callable[[Proc], None]) -> None:
        self._on_change = on_change
        self.living: dict[str, Proc] = {}
        self._by_token: dict[str, Proc] = {}  # those that have an answer to give

    def add(self, proc_id: str, token: str, key: LaunchKey, member: Member | None) -> Proc:
        """A launch begins, or is found after a restart. member: of a gang, or of one that it is for itself."""
        rank_of = None if member is None or member.shape.solo else member
        proc = Proc(proc_id, token, key, asyncio.get_running_loop().create_future(), self._on_change, rank_of)
        self._by_token[token] = proc
        holder = self.living.get(proc_id)
        if holder is None or holder.end.done():  # one that was found after a restart may have ended before this began
            self.living[proc_id] = proc
        self._on_change(proc)
        return proc

    def again(self, proc: Proc, token: str) -> Proc:
        """Another attempt follows, under the same name."""
        self.discard(proc)
        return self.add(proc.proc_id, token, proc.key, proc.rank_of)

    def discard(self, proc: Proc) -> None:
        """It has ended, and there is another attempt, or the id is free again."""
        self._by_token.pop(proc.token, None)
        if self.living.get(proc.proc_id) is proc:
            del self.living[proc.proc_id]

    def by_token(self, token: str) -> Proc | None:
        """The launch of that token that has not given its answer."""
        return self._by_token.get(token)


def _utc(stamp: float | None) -> datetime | None:
    return None if stamp is None else datetime.fromtimestamp(stamp, timezone.utc)
