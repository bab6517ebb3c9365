"""The default spawner: one per session, knows every proc of it, and reaches their nodes through agents."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
from collections import OrderedDict
from typing import Any

from ray_launcher.cluster.link import Link
from ray_launcher.cluster.nodes import Node, Nodes, NoFittingNodeError, NoSuchNodeError
from ray_launcher.cluster.wire import Launch, Request, SessionInfo
from ray_launcher.exits import ExitReport
from ray_launcher.options import LaunchOptions
from ray_launcher.spawner import ProcSpawner

#: Ended procs whose logs can still be found.
HISTORY = 10_000
#: Seconds that the end of a session waits for messages sent before it. One that never comes, because its sender was
#: interrupted, must not keep it from ending.
LATE = 2.0


@dataclasses.dataclass(eq=False)
class _Proc:
    token: str
    end: asyncio.Future[ExitReport]
    link: Link | None = None  # None: its node is not chosen yet
    placed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class ClusterSpawner(ProcSpawner):
    """Runs procs on the nodes of the cluster it lives in."""

    def __init__(self, session: SessionInfo, runtime_env: dict[str, Any]) -> None:
        self._session = session
        self._runtime_env = runtime_env
        self._nodes = Nodes()
        self._links: dict[str, Link] = {}
        self._procs: dict[str, _Proc] = {}
        self._by_token: dict[str, _Proc] = {}
        self._history: OrderedDict[str, tuple[Link | None, str]] = OrderedDict()  # proc_id: where it ran, its token
        self._ending = False

    async def launch(self, proc_id: str, opts: LaunchOptions) -> ExitReport:
        """See `ProcSpawner.launch`."""
        if self._ending:
            return _failed("the session is ending")
        if proc_id in self._procs:
            return _failed(f"proc {proc_id!r} is already running: wait for its exit port, or choose another id")
        proc = _Proc(uuid.uuid4().hex, asyncio.get_running_loop().create_future())
        self._procs[proc_id] = self._by_token[proc.token] = proc
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
            self._forget(proc_id, proc)

    async def terminate(self, proc_id: str, timeout_secs: float) -> None:
        """See `ProcSpawner.terminate`."""
        if proc_id in self._procs:
            self._request(self._procs[proc_id], timeout_secs)

    async def kill(self, proc_id: str) -> None:
        """See `ProcSpawner.kill`."""
        if proc_id in self._procs:
            self._request(self._procs[proc_id], None)

    async def end_session(self, launcher: str, number: int, grace: float) -> None:
        """TERM every proc on every node, KILL `grace` seconds later; returns when they, and the agents, are gone."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.in_turn(launcher, number), LATE)
        self._ending = True
        for proc in list(self._procs.values()):
            if proc.link is None:
                self._request(proc, None)
        await asyncio.gather(*(link.end(grace) for link in list(self._links.values())))

    async def drained(self) -> None:
        """Return when every launch has given its answer to Ray."""
        while self._procs:
            await asyncio.wait([proc.end for proc in self._procs.values()])
            await asyncio.sleep(0)

    async def locate(self, launcher: str, number: int, proc_id: str, wait: bool) -> tuple[Any, str] | None:
        """(the agent of its node, its token), once that agent has heard of it. None: unknown.

        The agent is None for a proc that never came to a node, or not yet. wait: for that, or its end.
        """
        await self.in_turn(launcher, number)
        proc = self._procs.get(proc_id)
        if proc is not None:
            if wait:
                placing = asyncio.ensure_future(proc.placed.wait())
                await asyncio.wait((placing, proc.end), return_when=asyncio.FIRST_COMPLETED)
                placing.cancel()
            if proc.link is not None:
                await proc.link.all_arrived()
            return self._agent_of(proc.link), proc.token
        if proc_id not in self._history:
            return None
        link, token = self._history[proc_id]
        return self._agent_of(link), token

    async def agents(self) -> dict[str, dict[str, Any]]:
        """Facts about the agents, by node id: for diagnostics."""
        return {node_id: await link.agent.info.remote() for node_id, link in self._links.items()}

    async def _place(self, proc: _Proc, opts: LaunchOptions) -> Node | None:
        """The node, or None when the proc has ended before it started. Does not suspend in the usual case."""
        node = self._nodes.pick(opts.placement, self._load)
        if node is not None:
            return node
        choosing = asyncio.ensure_future(self._nodes.wait_for(opts.placement, self._load))
        try:
            await asyncio.wait((choosing, proc.end), return_when=asyncio.FIRST_COMPLETED)
            return None if proc.end.done() else choosing.result()
        except (NoSuchNodeError, NoFittingNodeError) as error:
            proc.end.set_result(_failed(str(error)))
            return None
        finally:
            choosing.cancel()

    def _load(self, node_id: str) -> int:
        link = self._links.get(node_id)
        return 0 if link is None else len(link.launches)

    def _link(self, node: Node) -> Link:
        link = self._links.get(node.node_id)
        if link is None:
            link = Link(self._session, node, self._runtime_env, self._exited, self._lost)
            self._links[node.node_id] = link
        return link

    def _agent_of(self, link: Link | None) -> Any:
        """The agent that reaches its node now: a new one where that one was lost and another came."""
        return None if link is None else self._links.get(link.node.node_id, link).agent

    def _lost(self, link: Link) -> None:
        self._nodes.lose(link.node.node_id)
        if self._links.get(link.node.node_id) is link:
            del self._links[link.node.node_id]

    def _exited(self, token: str, report: ExitReport) -> None:
        proc = self._by_token.get(token)
        if proc is not None and not proc.end.done():
            proc.end.set_result(report)

    def _request(self, proc: _Proc, timeout: float | None) -> None:
        if proc.link is not None:
            proc.link.request(Request(proc.token, timeout))
        elif not proc.end.done():
            proc.end.set_result(_failed("ended on request before it was started"))

    def _forget(self, proc_id: str, proc: _Proc) -> None:
        if self._procs.get(proc_id) is proc:
            del self._procs[proc_id]
        del self._by_token[proc.token]
        self._history[proc_id] = (proc.link, proc.token)
        self._history.move_to_end(proc_id)
        if len(self._history) > HISTORY:
            self._history.popitem(last=False)


def _failed(reason: str) -> ExitReport:
    return ExitReport(None, None, False, reason, ())
