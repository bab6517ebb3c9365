"""What a session's spawner answers about its procs, and what else launchers ask of it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from ray_launcher.cluster.gangs import Gangs
from ray_launcher.cluster.link import Owner
from ray_launcher.cluster.links import Links
from ray_launcher.cluster.restored import Restored
from ray_launcher.cluster.roster import Roster
from ray_launcher.cluster.wire import Signal
from ray_launcher.desk import LaunchKey
from ray_launcher.errors import UnknownProcError
from ray_launcher.exits import ExitReport, decode_exit
from ray_launcher.info import ProcInfo
from ray_launcher.spawner import ProcSpawner


class Queries(ProcSpawner):
    """Each waits for its turn behind what the launcher sent before, and after a restart for what is not known yet."""

    _owner: Owner
    _roster: Roster
    _restored: Restored
    _links: Links
    _gangs: Gangs

    async def locate(
        self, launcher: str, number: int, proc_id: str, wait: bool, after: str = ""
    ) -> tuple[Any, str, bool] | None:
        """(the agent of its node, its token, whether another attempt may follow), once that agent has heard of it.

        None: unknown. The agent is None for a proc that never came to a node, or not yet. wait: for that, or its end.
        after: the token of an attempt: wait for the next one; None if there is none.
        """
        await self.in_turn(launcher, number)
        await self._restored.until(lambda: self._roster.find(proc_id) is not None)
        proc = self._roster.find(proc_id)
        while proc is not None and proc.token == after:
            proc = await proc.after()
        if proc is None:
            return None
        if wait and not proc.end.done():
            placing = asyncio.ensure_future(proc.placed.wait())
            await asyncio.wait((placing, proc.end), return_when=asyncio.FIRST_COMPLETED)
            placing.cancel()
        if proc.link is not None and not proc.end.done():
            await proc.link.all_arrived()
        return await self._links.agent_of(proc.link), proc.token, proc.may_follow

    async def infos(self, launcher: str, number: int) -> list[ProcInfo]:
        """What is known of every proc, those that ended lately included."""
        await self.in_turn(launcher, number)
        await self._restored.until()
        return self._roster.infos()

    async def await_ready(self, launcher: str, number: int, proc_id: str) -> str | None:
        """Return when a proc is ready: "", or how it has ended before; None: unknown."""
        await self.in_turn(launcher, number)
        await self._restored.until(lambda: self._roster.find(proc_id) is not None)
        proc = self._roster.find(proc_id)
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

    async def gang_cause(self, launcher: str, number: int, uid: str) -> int | None:
        """The rank that failed first, of a gang that is over."""
        await self.in_turn(launcher, number)
        return self._gangs.cause(uid)

    async def await_end(self, launcher: str, number: int, proc_id: str) -> ExitReport:
        """The report of a proc, whoever launched it; raises `UnknownProcError`."""
        await self.in_turn(launcher, number)
        await self._restored.until(lambda: self._roster.find(proc_id) is not None)
        proc = self._roster.find(proc_id)
        if proc is None:
            raise UnknownProcError(f"no proc {proc_id!r} in session {self._owner.session.name}")
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
        return {node_id: await (await link.reachable()).info.remote() for node_id, link in self._links.by_node.items()}

    async def facts(self) -> dict[str, Any]:
        """Facts about the spawner itself: for diagnostics."""
        return {"pid": os.getpid(), "generation": self._owner.generation}
