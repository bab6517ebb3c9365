"""What a session's spawner answers about its procs, and what else launchers ask of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ray import ObjectRef
from ray.exceptions import RayError

from ray_launcher.cluster.events import Answer, Events
from ray_launcher.cluster.gangs import Gangs
from ray_launcher.cluster.history import Past
from ray_launcher.cluster.link import Owner
from ray_launcher.cluster.links import Links
from ray_launcher.cluster.memory import Memory
from ray_launcher.cluster.restored import Restored
from ray_launcher.cluster.roster import Proc, Roster
from ray_launcher.cluster.usage import usage_of
from ray_launcher.cluster.wire import Location, SessionInfo, Signal, token_of
from ray_launcher.desk import LaunchKey
from ray_launcher.errors import UnknownProcError
from ray_launcher.exits import ExitReport, decode_exit
from ray_launcher.info import Attempt, ProcInfo, ProcState
from ray_launcher.spawner import ProcSpawner
from ray_launcher.usage import ProcUsage

#: Seconds between two looks for an agent that has not answered.
_AGAIN = 0.2


class Queries(ProcSpawner):
    """Each waits for its turn behind what the launcher sent before, and after a restart for what is not known yet."""

    _owner: Owner
    _roster: Roster
    _memory: Memory
    _events: Events
    _restored: Restored
    _links: Links
    _gangs: Gangs

    async def locate(  # what to look for, and how long
        self,
        launcher: str,
        number: int,
        proc_id: str,
        wait: bool,
        attempt: int | None = None,
        silent: bool = False,
    ) -> Location | None:
        """Where a proc is, once the agent of its node has heard of it. None: unknown, or there is no such attempt.

        wait: until it has come to a node, or has ended.  attempt: which one, that may be yet to come; None: the one
        that is under way.  silent: who asks has found its agent silent, and asks as long as it is.
        """
        if silent:
            await asyncio.sleep(_AGAIN)
        proc = await self._look_up(launcher, number, proc_id)
        while isinstance(proc, Proc) and attempt is not None and proc.attempt < attempt:
            proc = await proc.after()
        if proc is None:
            return None
        if isinstance(proc, Past):
            return await self._locate_past(proc, attempt)
        return await self._locate_living(proc, wait, attempt)

    async def put_all(self, launcher: str, number: int, proc_id: str, data: Sequence[ObjectRef[bytes]]) -> None:
        """Give a proc an object of Ray's to read, once it is on its node; it comes past us."""
        place = await self.locate(launcher, number, proc_id, True)
        if place is not None and place.agent is not None:
            with contextlib.suppress(RayError):  # the node is lost, and the proc
                await place.agent.put_all.remote(place.token, data)

    async def _locate_living(self, proc: Proc, wait: bool, attempt: int | None) -> Location:
        if attempt is None:
            attempt = proc.attempt - bool(proc.link is None and proc.earlier and not wait)  # it waits to be restarted
        if attempt < proc.attempt:
            return await self._locate_earlier(proc.key, proc.attempt, proc.earlier, attempt)
        if wait and not proc.end.done():
            placing = asyncio.ensure_future(proc.placed.wait())
            await asyncio.wait((placing, proc.end), return_when=asyncio.FIRST_COMPLETED)
            placing.cancel()
        if proc.link is not None and not proc.end.done():
            await proc.link.all_arrived()
        while (agent := await self._links.agent_of(proc.link)) is None and proc.link and not proc.end.done():
            await asyncio.wait((proc.end,), timeout=_AGAIN)  # another is being started, or the node given up
        node = None if proc.link is None else str(proc.link.node)
        return Location(agent, proc.token, attempt, proc.may_follow, node)

    async def _locate_past(self, past: Past, attempt: int | None) -> Location | None:
        info = past.info
        last = info.restarts
        if attempt is not None and attempt < last:
            return await self._locate_earlier(past.key, last, info.attempts, attempt)
        if attempt is not None and attempt > last:
            return None
        agent = await self._links.agent_on(info.node_id)
        return Location(agent, past.token, last, False, _in_words(info))

    async def _locate_earlier(self, key: LaunchKey, last: int, earlier: Sequence[Attempt], attempt: int) -> Location:
        """Of an attempt that is over; the oldest are forgotten."""
        known = dict(zip(range(last - len(earlier), last), earlier, strict=True)).get(attempt)
        agent = None if known is None else await self._links.agent_on(known.node_id)
        return Location(agent, token_of(key, attempt), attempt, True, None if known is None else _in_words(known))

    async def _look_up(self, launcher: str, number: int, proc_id: str) -> Proc | Past | None:
        """The living one of that name, else the last that has ended, if it is remembered."""
        await self.in_turn(launcher, number)
        await self._restored.until(lambda: proc_id in self._roster.living)
        history = self._memory.history
        found = self._roster.living.get(proc_id) or history.find(proc_id)
        if found is None and self._owner.generation:  # another launcher may not have asked for it again yet
            await self._restored.decided_all()
            found = self._roster.living.get(proc_id) or history.find(proc_id)
        return found

    async def infos(self, launcher: str, number: int) -> list[ProcInfo]:
        """What is known of every proc, those that ended lately included."""
        await self.in_turn(launcher, number)
        await self._restored.until()
        return self._all()

    def _all(self) -> list[ProcInfo]:
        living = self._roster.living
        ended = [info for info in self._memory.history.infos() if info.proc_id not in living]
        return [*ended, *(proc.info() for proc in living.values())]

    async def await_ready(self, launcher: str, number: int, proc_id: str) -> str | None:
        """Return when a proc is ready: "", or how it has ended before; None: unknown."""
        proc = await self._look_up(launcher, number, proc_id)
        if isinstance(proc, Past):
            return "" if proc.was_ready else str(decode_exit(proc.report))
        while proc is not None:
            ready = asyncio.ensure_future(proc.ready.wait())
            await asyncio.wait((ready, proc.end), return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if proc.ready.is_set():
                return ""
            following = await proc.after()
            if following is None:
                return str(decode_exit(proc.end.result()))
            proc = following
        return None

    async def about(self) -> tuple[SessionInfo, dict[str, Any], dict[ProcState, int]]:
        """The session, its runtime_env, and how many procs are in which state."""
        await self._restored.until()
        return self._owner.session, self._owner.runtime_env, dict(Counter(info.state for info in self._all()))

    async def events(self, launcher: str, number: int, incarnation: str | None, last: int | None, wait: bool) -> Answer:
        """See `Events.after`."""
        await self.in_turn(launcher, number)
        return await self._events.after(incarnation, last, wait)

    async def usage(self, launcher: str, number: int) -> list[ProcUsage]:
        """What every proc that has not ended uses."""
        await self.in_turn(launcher, number)
        await self._restored.until()
        return await usage_of(self._links, self._roster.living.values())

    async def whereabouts(self) -> dict[str, int]:
        """How many procs that have not ended are on which node, by its id."""
        await self._restored.until()
        living = self._roster.living.values()
        return dict(Counter(proc.link.node.node_id for proc in living if proc.link and not proc.end.done()))

    async def remove(self, launcher: str, number: int, proc_ids: Sequence[str]) -> list[str]:
        """Forget procs that have ended, and remove their logs; the answer is those that run, or are not known."""
        left: list[str] = []
        removed: list[Past] = []
        for proc_id in proc_ids:
            found = await self._look_up(launcher, number, proc_id)
            if isinstance(found, Past):
                await self._memory.history.remove(found)
                removed.append(found)
            else:
                left.append(proc_id)
        await self._remove_logs(removed, self._links.agent_on)
        return left

    async def _remove_logs(self, pasts: Sequence[Past], agent_of: Callable[[str | None], Awaitable[Any]]) -> None:
        """Those of all attempts that are known, a call for each node; agent_of(node_id): None where there is none."""
        by_node: dict[str | None, list[tuple[str, str]]] = {}
        for past in pasts:
            info = past.info
            where = [*(attempt.node_id for attempt in info.attempts), info.node_id]
            for attempt, node_id in enumerate(where, info.restarts - len(info.attempts)):
                by_node.setdefault(node_id, []).append((info.proc_id, token_of(past.key, attempt)))
        for node_id, logs in by_node.items():
            agent = await agent_of(node_id)
            if agent is not None:
                with contextlib.suppress(RayError):  # the node is being lost, with them
                    await agent.remove_logs.remote(logs)

    async def gang_cause(self, launcher: str, number: int, uid: str) -> int | None:
        """The rank that failed first, of a gang that is over."""
        await self.in_turn(launcher, number)
        return self._gangs.cause(uid)

    async def await_end(self, launcher: str, number: int, proc_id: str) -> ExitReport:
        """The report of a proc, whoever launched it; raises `UnknownProcError`."""
        proc = await self._look_up(launcher, number, proc_id)
        if proc is None:
            raise UnknownProcError(f"no proc {proc_id!r} in session {self._owner.session.name}")
        if isinstance(proc, Past):
            return proc.report
        while (following := await proc.after()) is not None:
            proc = following
        return proc.end.result()

    async def signal(self, key: LaunchKey, proc_id: str, signum: int) -> None:
        """Send a signal to every process of a proc; nothing for one that does not run."""
        await self._restored.until(lambda: proc_id in self._roster.living)
        proc = self._roster.living.get(proc_id)
        if proc is not None and proc.link is not None:
            proc.link.request(Signal(proc.token, signum, key))

    async def agents(self) -> dict[str, dict[str, Any]]:
        """Facts about the agents, by node id: for diagnostics."""
        reached = {node_id: await link.reachable() for node_id, link in self._links.by_node.items()}
        return {node_id: await agent.info.remote() for node_id, agent in reached.items() if agent is not None}

    async def facts(self) -> dict[str, Any]:
        """Facts about the spawner itself: for diagnostics."""
        return {"pid": os.getpid(), "generation": self._owner.generation}


def _in_words(where: ProcInfo | Attempt) -> str | None:
    return None if where.node_id is None else f"{where.node_id} ({where.node_ip})"
