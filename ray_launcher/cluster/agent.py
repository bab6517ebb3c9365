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
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import ActorUnavailableError, RayError

from ray_launcher.callables import Answer, answer_in
from ray_launcher.cluster.actors import find, spawner_actor
from ray_launcher.cluster.contact import RENEWALS
from ray_launcher.cluster.environment import raylet_environ
from ray_launcher.cluster.feed import Feed
from ray_launcher.cluster.follow import read_logs
from ray_launcher.cluster.inputs import Inputs, Taken
from ray_launcher.cluster.inside import InsideError
from ray_launcher.cluster.keeper import LOST, Keeper
from ray_launcher.cluster.lease import return_all
from ray_launcher.cluster.logfiles import Piece, since_offset, tail_offset
from ray_launcher.cluster.meter import Meter, Use
from ray_launcher.cluster.nodes import is_alive
from ray_launcher.cluster.ports import Ports
from ray_launcher.cluster.probes import Subject, Verdict, probe
from ray_launcher.cluster.registry import Registry
from ray_launcher.cluster.secrets import Secrets
from ray_launcher.cluster.specs import Specs
from ray_launcher.cluster.wire import (
    STREAMS,
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
from ray_launcher.node.protocol import ProtocolError
from ray_launcher.pace import Pace
from ray_launcher.readiness import ReadyWhen

_logger = logging.getLogger(__name__)

#: Seconds between two attempts to reach a spawner that Ray has not given up.
_RETRY = 0.2


class Agent:
    """One per node and session. A detached actor: it leaves by itself when the spawner is gone for good.

    name: its actor's, and its directory's, so that no other agent ever finds its supervisor.  again: there has been an
    actor of this name before.
    """

    def __init__(self, session: SessionInfo, name: str, again: bool = False) -> None:
        self._session, self._name = session, name
        # Whether launches may have run here of which nothing is known any more; decided when we have looked.
        self._forgot = again or ray.get_runtime_context().was_current_actor_reconstructed
        self._registry = Registry(session.name)
        self._spawner = find(spawner_actor(session.name))  # None: it is gone for good
        self._raylet = int(os.environ.get("RAY_RAYLET_PID") or os.getppid())
        self._raylet_gone = _watched(self._raylet)
        asked = ray.get_runtime_context().runtime_env.get("env_vars") or {}
        self._logs = Path(_ray_node().get_logs_dir_path())
        self._specs = Specs(session.name, name, self._logs, raylet_environ(self._raylet), asked)
        self._directory = client.runtime_directory(name)
        self._keeper = Keeper(self._directory, self._logs, self._specs.cookie(""), self)
        self._secrets = Secrets(self._directory)
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
        self._ports = Ports()
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
                await self._hand_on(join, batch)
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

    async def read(self, wants: dict[str, tuple[int, str]], timed: bool) -> dict[str, Piece]:
        """New bytes of log files, see `follow.read_logs`.

        `wants` is {file name: (offset, token)}: while the proc of that token lives, there may come more.
        """
        await asyncio.shield(self._finding)
        offsets = {name: offset for name, (offset, _) in wants.items()}
        running = self._keeper.running
        return await read_logs(self._logs, offsets, lambda name: wants[name][1] in running, timed=timed)

    async def begins(self, names: list[str], lines: int | None, since: float | None) -> dict[str, int]:
        """Where the last so many lines of log files begin, and none from before that time: an offset for `read`."""
        paths = {name: self._logs / name for name in names}
        tails = {name: 0 if lines is None else tail_offset(path, lines) for name, path in paths.items()}
        return {name: max(tails[name], since_offset(path, since) if since else 0) for name, path in paths.items()}

    async def put(self, token: str, writer: str, offset: int, data: bytes, last: bool) -> Taken | None:
        """Give a proc something to read, see `Inputs.put`."""
        await asyncio.shield(self._finding)
        return await self._inputs.put(token, writer, offset, data, last)

    async def put_all(self, token: str, data: Sequence[ObjectRef[bytes]]) -> None:
        """Give a proc an object of Ray's to read, and nothing behind it."""
        await asyncio.shield(self._finding)
        try:
            pickled = await data[0]
        except RayError:
            pickled = b""  # its driver is gone
        await self._inputs.put_all(token, pickled)

    async def answer(self, proc_id: str, token: str, _ended: object = None) -> Answer:
        """What the callable of a proc has returned, once that has ended. Raises `CallError`."""
        path = Path(os.fsdecode(self._specs.log(proc_id, token, "value")))
        try:
            data = await self._in_thread(path.read_bytes)
        except FileNotFoundError:
            data = b""
        return answer_in(data)

    async def resize(self, token: str, rows: int, columns: int) -> None:
        """Change the size of a proc's terminal, if it has one."""
        await asyncio.shield(self._finding)
        self._keeper.send(b"resize", token.encode(), b"%d" % rows, b"%d" % columns)

    async def remove_logs(self, launches: list[tuple[str, str]]) -> None:
        """Of launches that have ended: (proc_id, token) of each."""
        for proc_id, token in launches:
            self._specs.remove_logs(proc_id, token)

    async def open_port(self, name: str) -> int:
        """A port of this node that nobody else gets until the launch that is granted `name` comes here."""
        return self._ports.keep(name)

    async def probe(
        self, token: str, proc_id: str, ready_when: ReadyWhen, offsets: list[int]
    ) -> tuple[Verdict, list[int]]:
        """Look for a while whether a proc is ready; offsets: how far its logs have been read, also in the answer."""
        await asyncio.shield(self._finding)
        running = self._keeper.running
        started = running.get(token)
        if started is None:
            return "ended", offsets
        logs = [Path(os.fsdecode(self._specs.log(proc_id, token, stream))) for stream in STREAMS]
        address = _ray_node().node_ip_address
        return await probe(ready_when, Subject(started.pid, logs, address, lambda: token in running), offsets)

    async def usage(self) -> dict[str, Use]:
        """What the trees of all that runs use, by token."""
        await asyncio.shield(self._finding)
        return await self._meter.read()

    async def supervisor_bytes(self) -> int:
        """The memory of the supervisor and its guard."""
        return await self._meter.supervisor_bytes()

    async def await_gone(self, tokens: list[str]) -> None:
        """Return when nothing is left of the trees of these launches, which have ended."""
        await asyncio.shield(self._finding)
        await asyncio.gather(*map(self._keeper.gone, tokens))

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
        """Return when pending calls have been answered: Ray would report them as failed when this actor is killed."""
        await self._feed.hush()

    async def info(self) -> dict[str, Any]:
        """Facts for diagnostics: pid, and where things are."""
        return {"pid": os.getpid(), "directory": str(self._directory), "logs": str(self._logs)}

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

    # -- launches and requests ------------------------------------------------------------------------------------

    async def _hand_on(self, join: str, batch: list[Launch | Request | Signal]) -> None:
        failure, supervisor = "", None
        try:
            supervisor = await self._keeper.supervisor()
        except (client.SupervisorError, OSError) as error:
            failure = f"no supervisor on the node: {error}"
        if join != self._feed.join:
            return  # who joined meanwhile has been told that these never came, and has them launched anew, or elsewhere
        for message in batch:
            if not isinstance(message, Launch):
                self._request(message)
            elif supervisor is not None:
                self._launch(supervisor, message)
            else:
                self._keeper.failed(message.token, message.note, failure)
        await self._keeper.synced()

    def _request(self, message: Request | Signal) -> None:
        token = message.token.encode()
        if isinstance(message, Signal):
            sender, number = message.key
            self._keeper.send(b"signal", token, b"%d" % message.signum, sender.encode(), b"%d" % number)
        elif message.timeout is None:
            self._keeper.send(b"kill", token)
        else:
            self._keeper.send(b"terminate", token, b"%r" % message.timeout)

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

    def _launch(self, supervisor: Client, message: Launch) -> None:
        token = message.token
        if token in self._keeper.running:
            return  # sent again
        proc_id, opts, *more = pickle.loads(message.payload)  # noqa: S301  # from our own spawner
        try:
            secrets = self._secrets.put(token, opts.secrets) if opts.secrets else None
            spec = self._specs.make(message, proc_id, opts, secrets, *more[1:])
            if message.grant is not None and message.grant.port is not None:
                self._ports.give(message.grant.port)
            self._keeper.launch(supervisor, Started(token, 0, 0.0, message.note), spec)
        except ProtocolError as error:
            text = f"{opts.program}: arguments and environment are too long for exec (E2BIG): {error}"
            self._keeper.failed(token, message.note, text, code=126)
        except OSError as error:
            self._keeper.failed(token, message.note, f"cannot write the proc's secrets: {error.strerror}")
        except InsideError as error:
            self._keeper.failed(token, message.note, str(error))

    # -- the spawner ----------------------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        """Tell the supervisor until when nobody takes this node for lost: a lease from when it was asked for.

        Without its raylet the node is on its way out, and this process a second behind it: asking once more would only
        put off the day when the node is known to be lost.
        """
        while self._spawner is not None and not self._raylet_gone():
            asked = time.monotonic()
            try:
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
        """The call to the spawner never returns; it fails when the spawner is gone for good."""
        while self._spawner is not None:
            try:
                await self._spawner.serve_watch.remote()
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


def _ray_node() -> Any:
    """Ray's own description of this node; it has no public name for the log directory."""
    from ray._private import worker  # noqa: PLC0415  # private: kept to this place

    return worker._global_node  # noqa: SLF001
