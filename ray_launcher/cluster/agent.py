"""The node agent: the actor through which a session reaches one node. It owns no procs; its supervisor does.

It may be killed at any time: Ray starts it again, it finds its supervisor, and the spawner joins it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import select
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from ray_launcher.cluster.actors import find, is_restarted, spawner_actor
from ray_launcher.cluster.contact import RENEWALS
from ray_launcher.cluster.environment import raylet_environ
from ray_launcher.cluster.feed import Feed
from ray_launcher.cluster.inputs import Inputs
from ray_launcher.cluster.inquiries import Inquiries, ray_node
from ray_launcher.cluster.keeper import LOST, Keeper
from ray_launcher.cluster.lease import return_all
from ray_launcher.cluster.meter import Meter
from ray_launcher.cluster.nodes import is_alive
from ray_launcher.cluster.orders import Orders
from ray_launcher.cluster.ports import Ports
from ray_launcher.cluster.registry import Registry
from ray_launcher.cluster.secrets import Secrets
from ray_launcher.cluster.specs import Specs
from ray_launcher.cluster.wire import (
    Exit,
    Inventory,
    Launch,
    Request,
    SessionInfo,
    Signal,
    Started,
)
from ray_launcher.node import client
from ray_launcher.node.client import Client
from ray_launcher.pace import Pace

_logger = logging.getLogger(__name__)

#: Seconds between two attempts to reach a spawner that Ray has not given up.
_RETRY = 0.2
#: Seconds without a call to the spawner after a `hush`.
_SILENCE = 5.0


class Agent(Inquiries):
    """One per node and session. A detached actor: it leaves by itself when the spawner is gone for good.

    name: its actor's, and its directory's, so that no other agent ever finds its supervisor.  again: there has been an
    actor of this name before.
    """

    def __init__(self, session: SessionInfo, name: str, again: bool = False) -> None:
        self._session, self._name = session, name
        # Whether launches may have run here of which nothing is known any more; decided when we have looked.
        self._forgot = again or is_restarted()
        self._registry = Registry(session.name)
        self._spawner = find(spawner_actor(session.name))  # None: it is gone for good
        self._raylet = int(os.environ.get("RAY_RAYLET_PID") or os.getppid())
        self._raylet_gone = _watched(self._raylet)
        asked = ray.get_runtime_context().runtime_env.get("env_vars") or {}
        self._logs = Path(ray_node().get_logs_dir_path())
        self._specs = Specs(session.name, name, self._logs, raylet_environ(self._raylet), asked)
        self._directory = client.runtime_directory(name)
        self._keeper = Keeper(self._directory, self._logs, self._specs.cookie(""), self)
        self._secrets, self._ports = Secrets(self._directory), Ports()
        self._orders = Orders(self._keeper, self._specs, self._secrets, self._ports)
        self._going: set[asyncio.Task[None]] = set()
        self._owes_loss = False  # see `note_loss`
        self._noting = threading.Lock()
        self._inputs = Inputs(self._keeper)
        self._meter = Meter(self._keeper)
        self._finding = asyncio.ensure_future(self._find())
        self._generation = -1  # of the spawner that has joined us
        self._posting = asyncio.Lock()
        self._handed_on = 0  # the last call whose messages the supervisor has
        self._feed = Feed(self._raylet_gone)
        self._pace = Pace()
        self._lease = 0.0  # until when, by `time.monotonic`
        self._leased = asyncio.Event()
        self._watching, self._renewing = asyncio.Lock(), asyncio.Lock()  # held during the calls to the spawner
        self._tasks = [asyncio.ensure_future(self._watch()), asyncio.ensure_future(self._keep_lease())]

    # -- for the spawner ------------------------------------------------------------------------------------------

    async def join(
        self, generation: int, expected: dict[str, bytes], unsure: dict[str, bytes], complete: bool
    ) -> bytes:
        """Begin anew with the spawner of this generation: a pickled `Inventory`; b"" where a later one has joined.

        expected: notes of launches that were handed on before, by token.  unsure: of those that may have been.
        complete: there are no others. Of those that are not in the answer nothing has come to be, or will.
        """
        if generation < self._generation:
            return b""
        self._generation = generation
        with self._feed.answering():
            await asyncio.shield(self._finding)
        self._feed.leave()  # from here on nothing comes by what was sent before
        known = self._keeper.running.keys() | {exit_.token for exit_ in self._feed.kept.values()}
        for token, note in {**expected, **(unsure if self._forgot else {})}.items():
            if token not in known:
                self._keeper.failed(token, note, LOST)
        forgot = self._forgot
        if complete:
            self._forgot = False
        self._handed_on = 0
        running, ended = list(self._keeper.running.values()), list(self._feed.kept.values())
        return pickle.dumps(Inventory(self._feed.begin(), forgot, running, ended, self._raylet_gone()))

    async def post(self, join: str, call: int, received: int, settled: list[int], messages: bytes) -> bytes:
        """Take a pickled list of messages on, in order; answers with a pickled `News`, or b"" if not joined so.

        call: its number, from 1; the same one again means that its answer was lost. received: news up to this number
        has arrived.  settled: reports that need not be kept. The answer waits a moment for the ends of what was
        launched: a short proc then costs one call instead of two, and under load the messages that come meanwhile
        share the next one.
        """
        async with self._posting:  # asked again, it waits for what it asked before
            if not self._hear("post", join, call, received, settled):
                return b""
            if call != self._handed_on:
                batch: list[Launch | Request | Signal] = pickle.loads(messages)  # noqa: S301  # from our own spawner
                await self._leased.wait()
                await self._orders.hand_on(batch, lambda: join == self._feed.join)
                if join == self._feed.join:
                    self._handed_on = call
                    launched = {message.token for message in batch if isinstance(message, Launch)}
                    await self._feed.hold(launched & self._keeper.running.keys())
            if join != self._feed.join:
                self._feed.wake()  # what it would have told is for whoever has joined meanwhile
                return b""
            return self._feed.tell()

    async def poll(self, join: str, call: int, received: int, settled: list[int]) -> bytes:
        """Wait for news. As `post`, without messages."""
        if not self._hear("poll", join, call, received, settled):
            return b""
        with self._feed.answering():
            if not await self._feed.fresh(join, lambda: self._pace.wait(len(self._keeper.running))):
                return b""
            return self._feed.tell()

    async def end(self, grace: float) -> None:
        """TERM every proc, KILL what is left `grace` seconds later, and return when nothing is.

        The watch goes on: who asked may be gone before this returns.
        """
        await asyncio.shield(self._finding)
        await self._keeper.end(grace)

    async def recall(self, join: str) -> None:
        """What had been forgotten here when this join began is settled."""
        if join == self._feed.join:
            self._forgot = False

    async def hush(self) -> None:
        """Return when calls of both sides have been answered: Ray reports those that are pending when one is killed.

        Should neither be, all goes on a little later.
        """
        await self._feed.hush()
        unwatched = asyncio.ensure_future(self._watching.acquire())  # the next in line, before the watch returns
        with contextlib.suppress(RayError):
            await self._spawner.serve_unwatch.remote(self._name)
        await unwatched
        await self._renewing.acquire()  # only now: the watch may yet have to wait for another spawner
        for calling in (self._watching, self._renewing):
            asyncio.get_running_loop().call_later(_SILENCE, calling.release)

    async def _find(self) -> None:
        """What an agent before us has left; without a supervisor, its launches are forgotten, if it had any."""
        if await self._keeper.find():
            self._forgot = self._forgot and await self._in_thread(self._registry.has_loss, self._name)
            self._owes_loss = self._forgot
            for token in self._secrets.find() - self._keeper.running.keys():
                self._do(self._remove_secrets(token))
        elif self._forgot:
            self._forgot = await self._in_thread(self._registry.has_served, self._name)

    async def _in_thread(self, call: Callable[..., Any], *args: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, call, *args)

    # -- news -----------------------------------------------------------------------------------------------------

    def _hear(self, kind: str, join: str, call: int, received: int, settled: list[int]) -> bool:
        if not self._feed.hear(kind, join, call, received, settled):
            return False
        acknowledged = [b"%d" % sequence for sequence in settled if sequence > 0]  # the others are our own
        if acknowledged:
            self._keeper.send(b"ack", *acknowledged)
        if self._owes_loss and not self._forgot and not any(sequence < 0 for sequence in self._feed.kept):
            self._owes_loss = False
            self._do(self._in_thread(self._note_loss))
        return True

    def note_loss(self) -> None:
        """See `Host`: until their ends are acknowledged, whoever comes after us must not say that there were none."""
        self._owes_loss = True
        self._note_loss()

    def _note_loss(self) -> None:
        with self._noting:
            self._registry.note_loss(self._name, owed=self._owes_loss)

    def on_news(self, item: Started | Exit) -> None:
        """See `Host`."""
        self._feed.add(item)
        if isinstance(item, Exit) and item.token in self._secrets:
            self._do(self._remove_secrets(item.token))

    async def _remove_secrets(self, token: str) -> None:
        await self._keeper.gone(token)
        self._secrets.remove(token)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._going.add(task)
        task.add_done_callback(self._going.discard)

    # -- for the keeper ---------------------------------------------------------------------------------------------

    def start_supervisor(self) -> None:
        """See `Host`."""
        client.start(self._directory, self._raylet, self._session.lease, self._session.grace)

    def begin_serving(self) -> None:
        """See `Host`."""
        self._registry.note_serving(self._name)

    def on_connect(self, supervisor: Client) -> None:
        """See `Host`."""
        supervisor.send(b"base", *(name + b"=" + value for name, value in self._specs.base.items()))
        if self._lease:
            supervisor.send(b"lease", b"%r" % self._lease)

    def on_took(self, fields: list[bytes]) -> None:
        """See `Host`."""
        self._inputs.took(*fields)

    def on_superseded(self) -> None:
        """See `Host`: this process is one that Ray has given up and started again elsewhere."""
        os._exit(1)

    # -- the spawner ----------------------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        """Tell the supervisor until when nobody takes this node for lost: a lease from when it was asked for.

        Without its raylet the node is on its way out, and this process a second behind it: asking once more would only
        put off the day when the node is known to be lost.
        """
        while self._spawner is not None and not self._raylet_gone():
            asked = time.monotonic()
            try:
                async with self._renewing:
                    granted = await self._spawner.serve_renew.remote(self._name, time.time())
            except ActorUnavailableError:
                await asyncio.sleep(_RETRY)
                continue
            except RayError:
                return  # the watch sees to it
            if not granted:  # the spawner has taken us for lost
                await self._leave(0.0)
            self._lease = asked + self._session.lease
            self._keeper.send(b"lease", b"%r" % self._lease)
            self._leased.set()
            await asyncio.sleep(max(0.0, asked + self._session.lease / RENEWALS - time.monotonic()))

    async def _watch(self) -> None:
        """The call to the spawner returns when we may be killed; it fails when the spawner is gone for good."""
        while self._spawner is not None:
            try:
                async with self._watching:
                    await self._spawner.serve_watch.remote(self._name)
            except ActorUnavailableError:  # out of reach for now: Ray has not given it up
                await asyncio.sleep(_RETRY)
            except RayError:
                break
        _logger.info("the spawner of session %s is gone: ending its procs", self._session.name)
        self._keeper.send(b"lease", b"inf")  # nobody is left who could take this node for lost
        await self.end(self._session.grace)
        with contextlib.suppress(Exception):  # the cluster may be going, too
            await asyncio.get_running_loop().run_in_executor(None, self._tidy_up)
        await self._leave(0.0)

    def _tidy_up(self) -> None:
        """What is left of the session where nothing runs any more; all of it, if this is the last of its agents."""
        registry = self._registry
        registry.remove(self._name)
        there = {node.node_id for node in registry.agents().values() if is_alive(node)}
        return_all(self._session.name, spared=there)
        if not there:
            registry.clear()

    async def _leave(self, grace: float) -> None:
        await self.end(grace)
        ray.kill(ray.get_runtime_context().current_actor)
        await asyncio.Event().wait()


def _watched(pid: int) -> Callable[[], bool]:
    """A function that tells whether the process has ended."""
    end = os.pidfd_open(pid)  # readable from then on
    return lambda: bool(select.select([end], [], [], 0)[0])
