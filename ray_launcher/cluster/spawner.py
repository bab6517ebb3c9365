"""The default spawner: one per session, knows every proc of it, and reaches their nodes through agents."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from ray_launcher.cluster.link import Link
from ray_launcher.cluster.nodes import Node, Nodes, NoFittingNodeError, NoSuchNodeError
from ray_launcher.cluster.roster import Proc, Roster
from ray_launcher.cluster.wire import Exit, Launch, Request, SessionInfo, Signal, Started
from ray_launcher.errors import UnknownProcError
from ray_launcher.exits import ExitReport
from ray_launcher.info import ProcInfo
from ray_launcher.options import LaunchOptions
from ray_launcher.spawner import ProcSpawner

#: Seconds that the end of a session waits for messages sent before it. One that never comes, because its sender was
#: interrupted, must not keep it from ending.
LATE = 2.0


class ClusterSpawner(ProcSpawner):
    """Runs procs on the nodes of the cluster it lives in."""

    def __init__(self, session: SessionInfo, runtime_env: dict[str, Any]) -> None:
        self._session = session
        self._runtime_env = runtime_env
        self._nodes = Nodes()
        self._links: dict[str, Link] = {}
        self._roster = Roster()
        self._ending = False

    async def launch(self, proc_id: str, opts: LaunchOptions) -> ExitReport:
        """See `ProcSpawner.launch`."""
        if self._ending:
            return _failed("the session is ending")
        if proc_id in self._roster.living:
            return _failed(f"proc {proc_id!r} is already running: wait for its exit port, or choose another id")
        proc = Proc(proc_id, asyncio.get_running_loop().create_future())
        self._roster.add(proc)
        try:
            node = await self._place(proc, opts)
            if node is not None:
                proc.link = self._link(node)
                proc.placed.set()
                proc.link.launch(Launch(proc.token, proc_id, opts))
            return await proc.end
        except asyncio.CancelledError:
            self._request(proc, None)
            raise
        finally:
            self._roster.end(proc)

    async def terminate(self, proc_id: str, timeout_secs: float) -> None:
        """See `ProcSpawner.terminate`."""
        if proc_id in self._roster.living:
            self._request(self._roster.living[proc_id], timeout_secs)

    async def kill(self, proc_id: str) -> None:
        """See `ProcSpawner.kill`."""
        if proc_id in self._roster.living:
            self._request(self._roster.living[proc_id], None)

    async def end_session(self, launcher: str, number: int, grace: float) -> None:
        """TERM every proc on every node, KILL `grace` seconds later; returns when they, and the agents, are gone."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.in_turn(launcher, number), LATE)
        self._ending = True
        for proc in list(self._roster.living.values()):
            if proc.link is None:
                self._request(proc, None)
        await asyncio.gather(*(link.end(grace) for link in list(self._links.values())))

    async def drained(self) -> None:
        """Return when every launch has given its answer to Ray."""
        while self._roster.living:
            await asyncio.wait([proc.end for proc in self._roster.living.values()])
            await asyncio.sleep(0)

    async def locate(self, launcher: str, number: int, proc_id: str, wait: bool) -> tuple[Any, str] | None:
        """(the agent of its node, its token), once that agent has heard of it. None: unknown.

        The agent is None for a proc that never came to a node, or not yet. wait: for that, or its end.
        """
        await self.in_turn(launcher, number)
        proc = self._roster.find(proc_id)
        if proc is None:
            return None
        if wait and not proc.end.done():
            placing = asyncio.ensure_future(proc.placed.wait())
            await asyncio.wait((placing, proc.end), return_when=asyncio.FIRST_COMPLETED)
            placing.cancel()
        if proc.link is not None and not proc.end.done():
            await proc.link.all_arrived()
        return self._agent_of(proc.link), proc.token

    async def infos(self, launcher: str, number: int) -> list[ProcInfo]:
        """What is known of every proc, those that ended lately included."""
        await self.in_turn(launcher, number)
        return self._roster.infos()

    async def await_end(self, launcher: str, number: int, proc_id: str) -> ExitReport:
        """The report of a proc, whoever launched it; raises `UnknownProcError`."""
        await self.in_turn(launcher, number)
        proc = self._roster.find(proc_id)
        if proc is None:
            raise UnknownProcError(f"no proc {proc_id!r} in session {self._session.name}")
        return await asyncio.shield(proc.end)

    async def signal(self, launcher: str, number: int, proc_id: str, signum: int) -> None:
        """Send a signal to every process of a proc; nothing for one that does not run."""
        await self.in_turn(launcher, number)
        proc = self._roster.living.get(proc_id)
        if proc is not None and proc.link is not None:
            proc.link.request(Signal(proc.token, signum))

    async def agents(self) -> dict[str, dict[str, Any]]:
        """Facts about the agents, by node id: for diagnostics."""
        return {node_id: await link.agent.info.remote() for node_id, link in self._links.items()}

    async def _place(self, proc: Proc, opts: LaunchOptions) -> Node | None:
        """The node, or None when the proc has ended before it started. Does not suspend in the usual case.

        Nor does it after the choice: those who waited together would all choose by the same load.
        """
        while not proc.end.done():
            node = self._nodes.pick(opts.placement, self._load)
            if node is not None:
                return node
            waiting = asyncio.ensure_future(self._nodes.wait_for(opts.placement, self._load))
            try:
                await asyncio.wait((waiting, proc.end), return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    waiting.result()
            except (NoSuchNodeError, NoFittingNodeError) as error:
                proc.finish(_failed(str(error)))
            finally:
                waiting.cancel()
        return None

    def _load(self, node_id: str) -> int:
        link = self._links.get(node_id)
        return 0 if link is None else len(link.launches)

    def _link(self, node: Node) -> Link:
        link = self._links.get(node.node_id)
        if link is None:
            link = Link(self._session, node, self._runtime_env, self._news, self._lost)
            self._links[node.node_id] = link
        return link

    def _agent_of(self, link: Link | None) -> Any:
        """The agent that reaches its node now: another where that one was lost."""
        if link is None:
            return None
        return link.agent if self._ending else self._link(link.node).agent

    def _lost(self, link: Link) -> None:
        self._nodes.lose(link.node.node_id)
        if self._links.get(link.node.node_id) is link:
            del self._links[link.node.node_id]

    def _news(self, news: Started | Exit) -> None:
        proc = self._roster.by_token(news.token)
        if proc is None:
            return
        if isinstance(news, Exit):
            proc.finish(news.report)
        else:
            proc.pid, proc.started = news.pid, news.when

    def _request(self, proc: Proc, timeout: float | None) -> None:
        proc.asked_to_end = True
        if proc.link is not None:
            proc.link.request(Request(proc.token, timeout))
        else:
            proc.finish(_failed("ended on request before it was started"))


def _failed(reason: str) -> ExitReport:
    return ExitReport(None, None, False, reason, ())
