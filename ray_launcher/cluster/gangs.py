"""The gangs of a session: all ranks get their places at once, and the first that fails ends the others.

When all have ended there may be another attempt. What has been decided about a gang is kept in Ray's key-value store:
a spawner that is started again goes on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pickle
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any, Protocol

from ray_launcher.cluster.lease import Wish, bundle_of, selector_of
from ray_launcher.cluster.link import Link
from ray_launcher.cluster.nodes import Node
from ray_launcher.cluster.placing import Place, Placer, PlacingError
from ray_launcher.cluster.registry import Registry
from ray_launcher.cluster.roster import Proc
from ray_launcher.cluster.team import Record, Seats, Team
from ray_launcher.cluster.wire import Grant
from ray_launcher.desk import LaunchKey
from ray_launcher.exits import ExitReport
from ray_launcher.options import Placement
from ray_launcher.ranks import Member, for_all, rank_env, share_of

_Nodes = tuple[tuple[str, ...], tuple[dict[str, list[str]], ...], str | None]
#: Seconds for which a gang of a flexible size waits to be as large as it may: Ray's scheduler learns of what others,
#: or its own last attempt, have returned about once a second.
_LAST_CALL = 2.0
#: Gangs that are over, and whose causes are remembered.
HISTORY = 1000


class Host(Protocol):
    """The spawner, as its gangs see it."""

    async def open_port(self, node: Node, name: str) -> int | None:
        """One that nobody else gets before the launch that is granted this name; None: the node is lost."""

    def end_rank(self, proc: Proc, grace: float) -> None:
        """Terminate it: another rank has failed."""

    def restart(self, proc: Proc, key: LaunchKey, attempt: int) -> Proc:
        """The proc has ended: put the next attempt of its launch in its place."""

    def discard(self, proc: Proc) -> None:
        """The proc has ended, and nobody wants to know how: there has been another attempt since."""

    def may_come(self, key: LaunchKey) -> bool:
        """Whether a launch of before may still be asked for again."""

    async def claimed(self, launcher: str) -> None:
        """Return when all that runs is known, and all of which that launcher has no outcome."""


class Gangs:
    """All of a session. again: there may be gangs of an earlier spawner."""

    def __init__(self, placer: Placer, registry: Registry, host: Host, again: bool) -> None:
        self._placer, self._registry, self._host = placer, registry, host
        self._teams: dict[str, Team] = {}  # by their names
        self._attempts: dict[LaunchKey, int] = {}  # of those that have been restarted
        self._stopped: set[LaunchKey] = set()  # those that were asked to end
        self._owed: dict[str, set[LaunchKey]] = {}  # by gang: whose outcomes their launchers do not have
        self._gang_of: dict[LaunchKey, str] = {}
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._causes: OrderedDict[str, int | None] = OrderedDict()
        for pickled in registry.gangs() if again else ():
            record: Record = pickle.loads(pickled)  # noqa: S301  # our own
            self._enter(Team(record, restored=True))

    def attempt(self, key: LaunchKey) -> int:
        """How often a launch has been restarted."""
        return self._attempts.get(key, 0)

    def forget(self, key: LaunchKey) -> None:
        """A launch is over, and its launcher knows it."""
        self._attempts.pop(key, None)
        self._stopped.discard(key)
        uid = self._gang_of.pop(key, None)
        if uid is not None:
            self._owed[uid].discard(key)
            if not self._owed[uid]:
                del self._owed[uid]
                asyncio.get_running_loop().run_in_executor(None, self._registry.drop_gang, uid)

    def stop_launch(self, key: LaunchKey) -> None:
        """As `stop`, of a launch that may not be known yet; until `forget`."""
        self._stopped.add(key)

    def stop(self, proc: Proc) -> None:
        """Somebody wants a proc to end, or it has no place to go: there will not be another attempt."""
        team = None if proc.member is None else self._teams.get(proc.member.team)
        if team is not None:
            team.final = True

    def close(self) -> None:
        """There will not be another attempt of any."""
        self._closing = True

    async def seat(self, proc: Proc, key: LaunchKey, member: Member, placement: Placement, again: bool) -> Place | None:
        """The place of one rank, or None when it has ended before there was one. Raises `PlacingError`."""
        team = self.add(proc, key, member, again)
        if team.seating is None:
            team.seating = asyncio.ensure_future(self._seats(team, placement))
        await asyncio.wait((team.seating, proc.end), return_when=asyncio.FIRST_COMPLETED)
        if proc.end.done() or team.seating.cancelled():
            return None
        seats = team.seating.result()
        if member.node >= len(seats.nodes):
            team.rest(member.rank, proc, len(seats.nodes))
            self._check_over(team)
            return None
        node, shared = seats.nodes[member.node], seats.accelerators[member.node]
        if (placement.gpu_mask or ("proc" if member.shape.solo else "node")) == "proc":
            needs = bundle_of(placement)
            shared = {name: share_of(ids, needs.get(name, 0), member.local) for name, ids in shared.items()}
        seated = member._replace(shape=dataclasses.replace(member.shape, nnodes=len(seats.nodes)))
        env = rank_env(seated, seats.nodes[0].ip, seats.port)
        return Place(node, Grant(shared, env, team.name if seats.port and member.rank == 0 else None), seats.lease)

    def add(self, proc: Proc, key: LaunchKey, member: Member, again: bool) -> Team:
        """A rank has been asked for, or found to run. again: an earlier spawner had it."""
        team = self._teams.get(member.team)
        if team is None:
            record = Record(member.shape, (key[0], key[1] - member.rank), member.attempt)
            team = self._enter(Team(record, restored=again))
        if proc.member is None:
            team.living[member.rank] = proc
            proc.member, proc.earlier, proc.waits_for = member, team.earlier(member.rank), team.waits_for
            if member.attempt < member.shape.max_restarts:
                proc.following = asyncio.get_running_loop().create_future()
            if member.rank in team.replaced:
                team.replaced.pop(member.rank).follow(proc)
            proc.end.add_done_callback(lambda _: self._ended(team, member.rank, proc))
            if team.failing:
                self._host.end_rank(proc, member.shape.grace)
        return team

    def cause(self, uid: str) -> int | None:
        """The rank that failed first, of a gang that is over; None if none did, or it is forgotten."""
        return self._causes.get(uid)

    def check(self) -> None:
        """Of launches of an earlier spawner some will not be asked for again."""
        for team in [team for team in self._teams.values() if team.restored]:
            for rank in team.missing:
                if not self._host.may_come(team.key(rank)):
                    self.forget(team.key(rank))
            self._check_over(team)

    def _enter(self, team: Team) -> Team:
        uid, keys = team.shape.uid, [team.key(rank) for rank in range(team.shape.size)]
        if uid not in self._owed:
            self._owed[uid] = set(keys)
            self._gang_of.update(dict.fromkeys(keys, uid))
        if team.attempt:
            self._attempts.update(dict.fromkeys(keys, team.attempt))
            self._replace_earlier(team)
        self._teams[team.name] = team
        return team

    def _replace_earlier(self, team: Team) -> None:
        """What an earlier spawner has restarted is not the last word, whoever of its agents tells us of it first."""
        for attempt in range(team.attempt):
            earlier = self._teams.pop(Member(team.shape, 0, attempt).team, None)
            if earlier is not None:
                earlier.over = True
                team.replaced.update(earlier.ended | earlier.living)
                for proc in team.replaced.values():
                    self._host.discard(proc)

    async def _seats(self, team: Team, placement: Placement) -> Seats:
        await team.may_begin()
        shape = team.shape
        nodes, accelerators, name = await self._nodes_for(team, placement)
        found = tuple([await self._placer.node(node_id) for node_id in nodes])
        port = 0 if shape.solo else await self._host.open_port(found[0], team.name)
        if port is None:
            raise PlacingError(f"node {found[0]} was lost before the gang came there")
        seats = Seats(found, accelerators, port, name)
        await self._save(dataclasses.replace(team.record, seats=seats))
        return seats

    async def _nodes_for(self, team: Team, placement: Placement) -> _Nodes:
        """As many nodes as there are now, of as many as the gang may have, or as few once they are there."""
        shape = team.shape
        fewest = shape.min_nodes or shape.nnodes
        patience = _LAST_CALL
        for nnodes in range(shape.nnodes, fewest, -1):
            with contextlib.suppress(PlacingError):
                return await self._so_many_nodes(team, nnodes, dataclasses.replace(placement, timeout=patience))
            patience = 0.0
        return await self._so_many_nodes(team, fewest, placement)

    async def _so_many_nodes(self, team: Team, nnodes: int, placement: Placement) -> _Nodes:
        bundle, strategy = for_all(bundle_of(placement), team.shape.nproc), team.shape.strategy
        if not bundle:
            return await self._placer.spread(placement, nnodes, strategy), ({},) * nnodes, None
        wish = Wish((bundle,) * nnodes, (selector_of(placement),) * nnodes, strategy)
        lease = await self._placer.lease(team.name, wish, placement, team.living.values())
        return lease.nodes, lease.accelerators, lease.name

    async def _save(self, record: Record) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._registry.save_gang, record.shape.uid, pickle.dumps(record))

    def _ended(self, team: Team, rank: int, proc: Proc) -> None:
        team.end(rank, proc)
        if team.failed and team.shape.fail_fast and not team.failing:
            team.failing = True
            for other in list(team.living.values()):
                self._host.end_rank(other, team.shape.grace)
        self._check_over(team)

    def _check_over(self, team: Team) -> None:
        if team.living:
            return
        if any(not team.restored or self._host.may_come(team.key(rank)) for rank in team.missing):
            return
        if not team.over:
            team.over = True
            if team.seating is not None:
                team.seating.cancel()
            self._causes[team.shape.uid] = team.cause
            if len(self._causes) > HISTORY:
                self._causes.popitem(last=False)
            returning = self._begin(self._return_lease(team))
            self._begin(self._conclude(team, returning))

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _conclude(self, team: Team, returning: asyncio.Task[None]) -> None:
        """Every rank has ended: have another attempt, or be done with it."""
        following = None
        if team.restored:
            await self._host.claimed(team.record.first[0])
            if self._teams.get(team.name) is not team:
                return  # it has been replaced
        if self._goes_on(team):
            following = Team(team.following(), restored=team.restored, after=returning)
            await self._save(following.record)
        del self._teams[team.name]
        if following is not None and self._goes_on(team):
            self._enter(following)
        else:
            following = None
        for rank, proc in (team.ended | team.spare).items():
            if rank in team.spare:
                proc.finish(ExitReport(None, None, False, proc.waits_for, ()))
            if following is not None:
                again = self._host.restart(proc, team.key(rank), following.attempt)
                self.add(again, team.key(rank), Member(team.shape, rank, following.attempt), again=False)
                proc.follow(again)
            else:
                proc.follow(None)

    def _goes_on(self, team: Team) -> bool:
        stopped = team.final or self._closing or any(team.key(rank) in self._stopped for rank in team.ended)
        return bool(team.failed) and not stopped

    async def _return_lease(self, team: Team) -> None:
        """When nothing is left of any rank's tree."""
        left: dict[Link, list[str]] = {}
        for proc in team.ended.values():
            if proc.link is not None:
                left.setdefault(proc.link, []).append(proc.token)
        await asyncio.gather(*(link.ask("await_gone", tokens) for link, tokens in left.items()))
        self._placer.release(team.name, reusable=bool(left) and not any(link.lost for link in left))
