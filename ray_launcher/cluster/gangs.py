"""The gangs of a session: all ranks get their places at once, and the first that fails ends the others.

What has been decided about a gang is kept in Ray's key-value store: a spawner that is started again goes on with it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from ray_launcher.cluster.lease import Wish, bundle_of, selector_of
from ray_launcher.cluster.link import Link
from ray_launcher.cluster.nodes import Node
from ray_launcher.cluster.placing import Place, Placer, PlacingError
from ray_launcher.cluster.registry import Registry
from ray_launcher.cluster.roster import Proc
from ray_launcher.cluster.wire import Grant
from ray_launcher.desk import LaunchKey
from ray_launcher.exits import ExitReport
from ray_launcher.options import Placement
from ray_launcher.ranks import Member, Shape, for_all, rank_env, share_of

#: Gangs that are over, and whose causes are remembered.
HISTORY = 1000


@dataclasses.dataclass(frozen=True)
class Seats:
    """Per "node" of a gang: where its ranks go, and the accelerators that they share."""

    nodes: tuple[Node, ...]
    accelerators: tuple[dict[str, list[str]], ...]
    port: int
    lease: str | None


class Gangs:
    """All of a session.

    open_port(node, uid): one that nobody else gets before rank 0 does; None: the node is lost.
    end(proc, grace): terminate it.  may_come(key): whether a launch of before may still be asked for again.
    again: there may be gangs of an earlier spawner.
    """

    def __init__(
        self,
        placer: Placer,
        registry: Registry,
        open_port: Callable[[Node, str], Awaitable[int | None]],
        end: Callable[[Proc, float], None],
        may_come: Callable[[LaunchKey], bool],
        again: bool,
    ) -> None:
        self._placer, self._registry = placer, registry
        self._open_port, self._end, self._may_come = open_port, end, may_come
        self._gangs: dict[str, _Gang] = {}
        self._returning: set[asyncio.Task[None]] = set()
        self._causes: OrderedDict[str, int | None] = OrderedDict()
        for record in registry.gangs() if again else ():
            shape, first, seats = pickle.loads(record)  # noqa: S301  # our own
            self._gangs[shape.uid] = _Gang(shape, first, True, seats)

    async def seat(self, proc: Proc, key: LaunchKey, member: Member, placement: Placement, again: bool) -> Place | None:
        """The place of one rank, or None when it has ended before there was one. Raises `PlacingError`."""
        gang = self.add(proc, key, member, again)
        if gang.seating is None:
            gang.seating = asyncio.ensure_future(self._seats(gang, member.shape, placement))
        await asyncio.wait((gang.seating, proc.end), return_when=asyncio.FIRST_COMPLETED)
        if proc.end.done() or gang.seating.cancelled():
            return None
        seats = gang.seating.result()
        node, shared = seats.nodes[member.node], seats.accelerators[member.node]
        if (placement.gpu_mask or "node") == "proc":
            needs = bundle_of(placement)
            shared = {name: share_of(ids, needs.get(name, 0), member.local) for name, ids in shared.items()}
        env = rank_env(member, seats.nodes[0].ip, seats.port)
        return Place(node, Grant(shared, env, member.shape.uid if member.rank == 0 else None), seats.lease)

    def add(self, proc: Proc, key: LaunchKey, member: Member, again: bool) -> _Gang:
        """A rank has been asked for, or found to run. again: an earlier spawner had it."""
        gang = self._gangs.get(member.shape.uid)
        if gang is None:
            gang = self._gangs[member.shape.uid] = _Gang(member.shape, (key[0], key[1] - member.rank), again)
        gang.living[member.rank] = proc
        proc.member = member
        proc.end.add_done_callback(lambda end: self._ended(gang, member.rank, proc, end))
        if gang.failing:
            self._end(proc, member.shape.grace)
        return gang

    def cause(self, uid: str) -> int | None:
        """The rank that failed first, of a gang that is over; None if none did, or it is forgotten."""
        return self._causes.get(uid)

    def check(self) -> None:
        """Of launches of an earlier spawner some will not be asked for again."""
        for gang in [gang for gang in self._gangs.values() if gang.restored]:
            self._check_over(gang)

    async def _seats(self, gang: _Gang, shape: Shape, placement: Placement) -> Seats:
        bundle = for_all(bundle_of(placement), shape.nproc)
        if bundle:
            labels = selector_of(placement)
            wish = Wish((bundle,) * shape.nnodes, (labels,) * shape.nnodes, shape.strategy)
            lease = await self._placer.lease(shape.uid, wish, placement, gang.living.values())
            nodes, accelerators, name = lease.nodes, lease.accelerators, lease.name
        else:
            nodes = await self._placer.spread(placement, shape.nnodes, shape.strategy)
            accelerators, name = ({},) * shape.nnodes, None
        found = tuple([await self._placer.node(node_id) for node_id in nodes])
        port = await self._open_port(found[0], shape.uid)
        if port is None:
            raise PlacingError(f"node {found[0]} was lost before the gang came there")
        seats = Seats(found, accelerators, port, name)
        record = pickle.dumps((shape, gang.first, seats))
        await asyncio.get_running_loop().run_in_executor(None, self._registry.save_gang, shape.uid, record)
        return seats

    def _ended(self, gang: _Gang, rank: int, proc: Proc, end: asyncio.Future[ExitReport]) -> None:
        gang.living.pop(rank, None)
        gang.ended.append(proc)
        gang.over[rank] = None
        report = None if end.cancelled() else end.result()
        if report is not None and _is_failure(report):
            gang.over[rank] = proc.exited
            if gang.shape.fail_fast and not gang.failing:
                gang.failing = True
                for other in list(gang.living.values()):
                    self._end(other, gang.shape.grace)
        self._check_over(gang)

    def _check_over(self, gang: _Gang) -> None:
        if gang.living:
            return
        launcher, first = gang.first
        missing = [rank for rank in range(gang.shape.size) if rank not in gang.over]
        if any(not gang.restored or self._may_come((launcher, first + rank)) for rank in missing):
            return
        uid = gang.shape.uid
        if self._gangs.pop(uid, None) is None:
            return
        failed = {rank: when for rank, when in gang.over.items() if when is not None}
        self._causes[uid] = min(failed, key=failed.__getitem__, default=None)
        if len(self._causes) > HISTORY:
            self._causes.popitem(last=False)
        if gang.seating is not None:
            gang.seating.cancel()
        self._returning.add(returning := asyncio.ensure_future(self._return_lease(gang)))
        returning.add_done_callback(self._returning.discard)
        asyncio.get_running_loop().run_in_executor(None, self._registry.drop_gang, uid)

    async def _return_lease(self, gang: _Gang) -> None:
        """When nothing is left of any rank's tree."""
        left: dict[Link, list[str]] = {}
        for proc in gang.ended:
            if proc.link is not None:
                left.setdefault(proc.link, []).append(proc.token)
        await asyncio.gather(*(link.ask("await_gone", tokens) for link, tokens in left.items()))
        self._placer.release(gang.shape.uid, reusable=bool(left) and not any(link.lost for link in left))


class _Gang:
    """first: the key of rank 0.  restored: an earlier spawner had it, and has decided on these seats."""

    def __init__(self, shape: Shape, first: LaunchKey, restored: bool, seats: Seats | None = None) -> None:
        self.shape, self.first = shape, first
        self.restored = restored
        self.seating: asyncio.Future[Seats] | None = None
        if seats is not None:
            self.seating = asyncio.get_running_loop().create_future()
            self.seating.set_result(seats)
        self.living: dict[int, Proc] = {}
        self.over: dict[int, float | None] = {}  # by rank: when it failed, if it did
        self.ended: list[Proc] = []
        self.failing = False


def _is_failure(report: ExitReport) -> bool:
    return report.failed_reason is not None or report.signal is not None or report.exit_code != 0
