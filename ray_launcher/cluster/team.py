"""One attempt of a gang: its ranks, how they ended, and whether there should be another.

A proc that may be restarted is a gang of one.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection, Sequence

from ray_launcher.cluster.nodes import Node
from ray_launcher.cluster.roster import Proc
from ray_launcher.desk import LaunchKey
from ray_launcher.exits import ExitReport
from ray_launcher.info import Attempt
from ray_launcher.options import LONGEST_RESTART_DELAY, LaunchOptions
from ray_launcher.ranks import NOT_NEEDED, Member, Shape

#: Seconds for which an attempt must have run for the next wait to be the first again; Kubernetes' number.
HEALTHY = 600.0
#: Attempts that are remembered.
_HISTORY = 20
#: The codes of a program that cannot be started: it is not worth another attempt.
_NO_PROGRAM = (126, 127)


@dataclasses.dataclass(frozen=True)
class Seats:
    """Per "node" of a gang: where its ranks go, and the accelerators that they share. port: rank 0's, 0: none."""

    nodes: tuple[Node, ...]
    accelerators: tuple[dict[str, list[str]], ...]
    port: int
    lease: str | None


@dataclasses.dataclass(frozen=True)
class Record:
    """What a spawner that is started again must know of a gang. first: the key of rank 0.

    history: of earlier attempts, how each rank ended.
    """

    shape: Shape
    first: LaunchKey
    attempt: int = 0
    seats: Seats | None = None
    history: tuple[dict[int, Attempt], ...] = ()


class Team:
    """restored: an earlier spawner had it, too.  after: to be awaited before it begins."""

    def __init__(self, record: Record, *, restored: bool, after: asyncio.Task[None] | None = None) -> None:
        self.record, self.restored, self._after = record, restored, after
        self.shape, self.attempt = record.shape, record.attempt
        self.seating: asyncio.Future[Seats] | None = None
        if record.seats is not None:
            self.seating = asyncio.get_running_loop().create_future()
            self.seating.set_result(record.seats)
        self.living: dict[int, Proc] = {}  # by rank, as all of these
        self.ended: dict[int, Proc] = {}
        self.spare: dict[int, Proc] = {}  # those for which there is no place in this attempt
        self.failed: dict[int, float] = {}  # when
        self.failing = False  # the others are being ended
        self.over = False
        self.waits_for = self._why() if record.history and record.seats is None else None
        self.replaced: dict[int, Proc] = {}  # of an earlier attempt, in whose place ours come
        self.final = record.attempt >= record.shape.max_restarts  # whatever happens, there is no other attempt

    @property
    def name(self) -> str:
        """See `Member.team`."""
        return Member(self.shape, 0, self.attempt).team

    @property
    def cause(self) -> int | None:
        """The rank that failed first."""
        return min(self.failed, key=self.failed.__getitem__, default=None)

    @property
    def missing(self) -> list[int]:
        """The ranks of which nothing is known."""
        known = self.living.keys() | self.ended.keys() | self.spare.keys()
        return [rank for rank in range(self.shape.size) if rank not in known]

    @property
    def delay(self) -> float:
        """Seconds before this attempt may begin, if it is not the first."""
        return delay_before(self.shape.restart_delay, [_lifetime(attempt.values()) for attempt in self.record.history])

    def key(self, rank: int) -> LaunchKey:
        """The launch of a rank."""
        launcher, first = self.record.first
        return launcher, first + rank

    def earlier(self, rank: int) -> tuple[Attempt, ...]:
        """How that rank ended in earlier attempts."""
        return tuple(attempt[rank] for attempt in self.record.history if rank in attempt)

    def rest(self, rank: int, proc: Proc, nnodes: int) -> None:
        """There is no place for this rank: the gang runs on so many nodes."""
        self.spare[rank] = self.living.pop(rank)
        proc.waits_for = f"{NOT_NEEDED}the gang runs on {nnodes} of at most {self.shape.nnodes} nodes"

    def end(self, rank: int, proc: Proc) -> None:
        """A rank has ended."""
        if self.spare.get(rank) is proc:
            return
        self.living.pop(rank, None)
        self.ended[rank] = proc
        if proc.end.cancelled():
            self.final = True
            return
        report = proc.end.result()
        if is_failure(report):
            self.failed[rank] = proc.exited or 0.0
            if report.failed_reason is not None and report.exit_code in _NO_PROGRAM:
                self.final = True

    def following(self) -> Record:
        """The attempt after this one, in which every rank has ended."""
        ends = {rank: proc.past() for rank, proc in self.ended.items()}
        history = (*self.record.history, ends)[-_HISTORY:]
        return dataclasses.replace(self.record, attempt=self.attempt + 1, seats=None, history=history)

    async def may_begin(self) -> None:
        """Wait until this attempt may."""
        if self._after is not None:  # its processes may still use what is to be used again
            await asyncio.shield(self._after)
        if self.record.history:
            await asyncio.sleep(self.delay)
        self.waits_for = None
        for proc in self.living.values():
            proc.waits_for = None

    def _why(self) -> str:
        failed = [(end.exited_at, rank, end) for rank, end in self.record.history[-1].items() if not end.result.ok]
        _, rank, end = min(failed)
        who = "it" if self.shape.solo else f"rank {rank}"
        return f"restart {self.attempt} of {self.shape.max_restarts} after {self.delay:g} s: {who} {end.result}"


def alone(token: str, proc_id: str, opts: LaunchOptions) -> Member | None:
    """The gang of one that a proc is which may be restarted; None: it may not."""
    if not opts.max_restarts:
        return None
    shape = Shape(token, proc_id, 1, 1, max_restarts=opts.max_restarts, restart_delay=opts.restart_delay, solo=True)
    return Member(shape, 0)


def delay_before(first: float, lifetimes: Sequence[float]) -> float:
    """Seconds to wait before a restart, after attempts that ran for so many seconds each: twice as long every time."""
    short = 0
    for lifetime in reversed(lifetimes):
        if lifetime >= HEALTHY:
            break
        short += 1
    return min(first * 2.0 ** min(max(short - 1, 0), 32), LONGEST_RESTART_DELAY)


def is_failure(report: ExitReport) -> bool:
    """Whether a rank that ends so has failed."""
    return report.failed_reason is not None or report.signal is not None or report.exit_code != 0


def _lifetime(ranks: Collection[Attempt]) -> float:
    """Seconds from the first start to the first end."""
    starts = [rank.started_at for rank in ranks if rank.started_at is not None]
    ends = [rank.exited_at for rank in ranks if rank.exited_at is not None]
    return (min(ends) - min(starts)).total_seconds() if starts and ends else 0.0
