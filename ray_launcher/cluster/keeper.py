"""The agent's hold on its supervisor: finds the one that runs or starts one, and sees to what a lost one leaves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from ray_launcher.cluster.wire import Exit, Started
from ray_launcher.exits import ExitReport
from ray_launcher.node import client
from ray_launcher.node.client import Client, SupervisorError
from ray_launcher.node.mopup import mop_up, remove_spare
from ray_launcher.node.protocol import ProtocolError
from ray_launcher.node.spec import Spec

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Seconds for what a lost supervisor leaves to be gone; longer than the guard goes on killing.
MOP_UP = 12.0
LOST = "the node's supervisor was lost, and the proc with it"


class Host(Protocol):
    """The agent, as its keeper sees it."""

    def start_supervisor(self) -> None:
        """Start one in the keeper's directory; blocks. Raises `SupervisorError`."""

    def begin_serving(self) -> None:
        """Called before the first supervisor, or the first after another agent's, gets launches; blocks."""

    def note_loss(self) -> None:
        """Called when a supervisor is lost, before anybody is told, or another one starts; blocks."""

    def on_connect(self, supervisor: Client) -> None:
        """Called before anything else is sent to this supervisor."""

    def on_news(self, item: Started | Exit) -> None:
        """Called with what a supervisor tells."""

    def on_took(self, fields: list[bytes]) -> None:
        """Called with what a supervisor says of input: token, writer, offset, state."""

    def on_superseded(self) -> None:
        """Another agent has taken the supervisor over; this one must not touch what is there any more."""


class Keeper:
    """One supervisor after the other, in `directory`.

    cookie: what those of all its launches begin with, in the environment of their processes.
    """

    def __init__(self, directory: Path, logs: Path, cookie: str, host: Host) -> None:
        self._thread = ThreadPoolExecutor(1, "keeper")  # nobody else's work is in its way
        self._directory, self._logs, self._host = directory, logs, host
        self._cookie = cookie.encode()
        self.running: dict[str, Started] = {}  # what it has been told to launch, or found to run, by token
        self.supervisor_pid = 0  # the last that was there
        self._client: Client | None = None
        self._listed: asyncio.Future[None] | None = None  # it has said all it knows
        self._lock = asyncio.Lock()
        self._ending = False
        self._gone = asyncio.Event()  # the supervisor, its guard, and all that was theirs
        self._mopping: asyncio.Future[None] | None = None
        self._going: dict[str, list[asyncio.Future[None]]] = {}  # by token: who waits for the end of its tree
        self._unconfirmed: deque[asyncio.Future[None]] = deque()
        self._serving = False
        self._failures = time.monotonic_ns()  # they count on from those of the agents before us

    async def find(self) -> bool:
        """Find what an earlier agent has left here: True for a supervisor. Otherwise nothing of it lives afterwards."""
        async with self._lock:
            await self._in_thread(int)  # starts it, for there may be none to be had later
            try:
                await self._connect()
            except (OSError, SupervisorError):
                if not await self._clear():
                    return True
                client.remove_directory(self._directory)
                return False
            return True

    async def supervisor(self) -> Client:
        """The one that runs, or a new one. Raises `SupervisorError` and OSError."""
        async with self._lock:
            await self._mopped_up()
            if self._ending:
                raise SupervisorError("the session is ending")
            if self._client is None:
                client.make_directory(self._directory)
                await self._in_thread(self._host.start_supervisor)
                await self._connect()
            if not self._serving:
                await self._in_thread(self._host.begin_serving)
                self._serving = True
            assert self._client is not None  # noqa: S101  # see _connect
            return self._client

    def launch(self, supervisor: Client, started: Started, spec: Spec) -> None:
        """Hand a launch on; its end will be told. Raises `ProtocolError` where it is too large."""
        self.running[started.token] = started
        try:
            supervisor.send(b"launch", *spec.fields())
        except ProtocolError:
            del self.running[started.token]
            raise

    def send(self, *fields: bytes) -> None:
        """To the supervisor, if there is one."""
        if self._client is not None:
            self._client.send(*fields)

    async def synced(self) -> None:
        """Return when the supervisor has carried out all that was sent, or is lost with all that is running."""
        if self._client is not None and self._mopping is None:
            confirmed = asyncio.get_running_loop().create_future()
            self._unconfirmed.append(confirmed)
            self._client.send(b"sync")
            await confirmed

    async def gone(self, token: str) -> None:
        """Return when nothing is left of the tree of a launch that has ended."""
        await self._mopped_up()
        if self._client is not None:
            gone = asyncio.get_running_loop().create_future()
            self._going.setdefault(token, []).append(gone)
            self._client.send(b"gone", token.encode())
            await gone

    async def end(self, grace: float) -> None:
        """TERM every proc, KILL what is left `grace` seconds later, and return when nothing is.

        Of several calls the earliest KILL holds.
        """
        self._ending = True
        async with self._lock:  # one that is half started could not be told
            supervisor = self._client
        if supervisor is not None:
            supervisor.send(b"stop", b"%r" % float(grace))
            await self._gone.wait()

    def failed(self, token: str, note: bytes, reason: str, code: int | None = None) -> None:
        """A launch has come to nothing."""
        self._failures += 1
        self._ended(Exit(-self._failures, token, ExitReport(code, None, False, reason, ()), note))

    # -- one supervisor -------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        self._gone.clear()
        self._listed = asyncio.get_running_loop().create_future()
        found = await Client.connect(self._directory, self._on_frame, self._on_lost)
        self._client = found
        self._host.on_connect(found)
        await self._listed

    def _on_frame(self, verb: bytes, fields: list[bytes]) -> None:
        if verb == b"exit":
            self._ended(_exit(fields))
        elif verb == b"started":
            for token, pid, when in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
                self._started(token, pid, when, b"")
        elif verb == b"hello":
            self._hello(*fields)
        elif verb == b"took":
            self._host.on_took(fields)
        else:
            self._on_answer(verb, *fields)

    def _on_answer(self, verb: bytes, text: bytes = b"") -> None:
        if verb == b"gone":
            self._nothing_left(text.decode())
        elif verb == b"synced":
            _resolve(self._unconfirmed.popleft())
        elif verb == b"superseded":
            self._host.on_superseded()
        elif verb == b"note":
            _logger.warning("%s", text.decode(errors="replace"))

    def _hello(self, pid: bytes, *running: bytes) -> None:
        self.supervisor_pid = int(pid)
        for each in zip(running[::4], running[1::4], running[2::4], running[3::4], strict=True):
            self._started(*each)
        if self._listed is not None and not self._listed.done():
            self._listed.set_result(None)

    def _started(self, token: bytes, pid: bytes, when: bytes, note: bytes) -> None:
        name = token.decode()
        started = Started(name, int(pid), float(when), note or self._note(name))
        self.running[name] = started
        self._host.on_news(started)

    def _note(self, token: str) -> bytes:
        known = self.running.get(token)
        return b"" if known is None else known.note

    def _ended(self, exit_: Exit) -> None:
        self.running.pop(exit_.token, None)
        self._host.on_news(exit_)

    def _on_lost(self) -> None:
        if self._listed is not None and not self._listed.done():
            self._listed.set_exception(SupervisorError("the supervisor was lost as it was found"))
        while self._unconfirmed:
            _resolve(self._unconfirmed.popleft())
        self._mopping = asyncio.ensure_future(self._mop_up())

    async def _mopped_up(self) -> None:
        if self._mopping is not None:
            await self._mopping
            self._client = self._mopping = None

    async def _mop_up(self) -> None:
        if not await self._clear(noted=True):  # it is there, and has let go of us
            self._host.on_superseded()
        words = client.last_words(self._directory)
        for token, started in list(self.running.items()):
            self.failed(token, started.note, LOST + (f": {words}" if words else ""))
        client.remove_directory(self._directory)
        self._gone.set()
        for token in list(self._going):
            self._nothing_left(token)

    def _nothing_left(self, token: str) -> None:
        for gone in self._going.pop(token, []):
            _resolve(gone)

    async def _clear(self, *, noted: bool = False) -> bool:
        """End what a supervisor left: its guard does, and if that was killed too, it is up to us. False: it lives."""
        free: bool = await self._in_thread(self._wait_until_free, noted and bool(self.running))
        if free:
            await self._in_thread(mop_up, self._cookie, MOP_UP)
            remove_spare(self._logs)
        return free

    def _wait_until_free(self, noted: bool) -> bool:
        if noted:
            self._host.note_loss()
        return client.wait_until_free(self._directory, MOP_UP)

    async def _in_thread(self, call: Callable[..., _T], *args: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _exit(fields: list[bytes]) -> Exit:
    sequence, token, note, kind, reason, value, core, when, *tail = fields
    number = int(value) if value else None
    lines = [line.decode() for line in tail]
    if kind == b"failed":
        report = ExitReport(number, None, False, reason.decode(errors="replace"), lines)
    elif kind == b"signaled":
        report = ExitReport(None, number, core == b"1", None, lines)
    else:
        report = ExitReport(number, None, False, None, lines)
    return Exit(int(sequence), token.decode(), report, note, float(when))
