"""The node agent: the actor through which a session reaches one node. It owns no procs; its supervisor does."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayError

from ray_launcher.cluster.environment import additions, base_environ, raylet_environ, removals
from ray_launcher.cluster.follow import read_logs, tail_offset
from ray_launcher.cluster.wire import Exit, Launch, Request, SessionInfo, Signal, Started, log_name
from ray_launcher.exits import ExitReport
from ray_launcher.node import client
from ray_launcher.node.client import Client
from ray_launcher.node.mopup import mop_up, remove_spare
from ray_launcher.node.protocol import ProtocolError
from ray_launcher.node.spec import Spec

_logger = logging.getLogger(__name__)

#: Seconds for which the answer to launches waits for their ends.
HOLD = 0.003
#: Seconds for what a lost supervisor leaves to be gone; longer than the guard goes on killing.
MOP_UP = 12.0


class Agent:
    """One per node and session. A detached actor: it leaves by itself when the spawner is gone for good.

    name: its actor's, and its directory's, so that no other agent ever finds its supervisor.
    """

    def __init__(self, session: SessionInfo, name: str, spawner: ActorHandle[Any]) -> None:
        self._session = session
        self._spawner: Any = spawner
        self._raylet = int(os.environ.get("RAY_RAYLET_PID") or os.getppid())
        self._raylet_environ = raylet_environ(self._raylet)
        asked = ray.get_runtime_context().runtime_env.get("env_vars") or {}
        self._base = base_environ(os.environb, self._raylet_environ, asked)
        self._logs = Path(_ray_node().get_logs_dir_path())
        self._directory = Path(tempfile.gettempdir()) / f"ray-launcher-{os.geteuid()}" / name
        self._cwd = str(Path.cwd())
        self._client: Client | None = None
        self._supervisor_pid = 0
        self._starting = asyncio.Lock()
        self._ending = False
        self._live: set[str] = set()
        self._untold: list[Started | Exit] = []
        self._delivered = 0
        self._news = asyncio.Event()
        self._held: set[str] = set()  # launches that the answer to `post` waits for
        self._holding: asyncio.Future[None] | None = None
        self._gone = asyncio.Event()  # the supervisor, its guard, and all that was theirs
        self._mopping: asyncio.Future[None] | None = None
        self._watching = asyncio.ensure_future(self._watch())

    # -- for the spawner ------------------------------------------------------------------------------------------

    async def post(self, messages: bytes, delivered: int) -> bytes:
        """Take a pickled list of messages on, in order; returns a pickled list of news, as `poll` does.

        Calls must not overlap. The answer waits a moment for the ends of what was launched: a short proc then costs
        one call instead of two, and under load the messages that come meanwhile share the next one.
        """
        self._acknowledge(delivered)
        batch: list[Launch | Request | Signal] = pickle.loads(messages)  # noqa: S301  # from our own spawner
        await self._hand_on(batch)
        fresh = {message.token for message in batch if isinstance(message, Launch)} & self._live
        if fresh:
            self._held, self._holding = fresh, asyncio.get_running_loop().create_future()
            timer = asyncio.get_running_loop().call_later(HOLD, self._release)
            await self._holding
            timer.cancel()
            self._holding = None
        return self._collect()

    async def poll(self, delivered: int) -> bytes:
        """Wait for news and return it, pickled; exits up to number `delivered` are known to have arrived."""
        self._acknowledge(delivered)
        while not self._untold or self._holding is not None:
            self._news.clear()
            await self._news.wait()
        return self._collect()

    async def read(self, wants: dict[str, tuple[int, str]]) -> dict[str, tuple[bytes, bool]]:
        """New bytes of log files, see `follow.read_logs`.

        `wants` is {file name: (offset, token)}: while the proc of that token lives, there may come more.
        """
        offsets = {name: offset for name, (offset, _) in wants.items()}
        return await read_logs(self._logs, offsets, lambda name: wants[name][1] in self._live)

    async def tails(self, names: list[str], lines: int) -> dict[str, int]:
        """Where the last so many lines of log files begin, by file name: an offset for `read`."""
        return {name: tail_offset(self._logs / name, lines) for name in names}

    async def end(self, grace: float) -> None:
        """TERM every proc, KILL what is left `grace` seconds later, and return when nothing is.

        Of several calls the earliest KILL holds. The watch goes on: who asked may be gone before this returns.
        """
        self._ending = True
        async with self._starting:  # one that is half started could not be told
            supervisor = self._client
        if supervisor is not None:
            supervisor.send(b"stop", b"%r" % float(grace))
            await self._gone.wait()

    async def info(self) -> dict[str, Any]:
        """Facts for diagnostics: pid, and where things are."""
        return {"pid": os.getpid(), "directory": str(self._directory), "logs": str(self._logs)}

    # -- exits ----------------------------------------------------------------------------------------------------

    def _acknowledge(self, delivered: int) -> None:
        if delivered > self._delivered and self._client is not None:
            self._delivered = delivered
            self._client.send(b"ack", b"%d" % delivered)

    def _collect(self) -> bytes:
        news, self._untold = self._untold, []
        return pickle.dumps(news)

    def _started(self, fields: list[bytes]) -> None:
        for token, pid, when in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
            self._untold.append(Started(token.decode(), int(pid), float(when)))
        if self._holding is None:
            self._news.set()

    def _exited(self, exit_: Exit) -> None:
        self._live.discard(exit_.token)
        self._untold.append(exit_)
        self._held.discard(exit_.token)
        if self._holding is None:
            self._news.set()
        elif not self._held:
            self._release()

    def _release(self) -> None:
        if self._holding is not None and not self._holding.done():
            self._holding.set_result(None)

    # -- the supervisor -------------------------------------------------------------------------------------------

    async def _hand_on(self, batch: list[Launch | Request | Signal]) -> None:
        try:
            supervisor = await self._supervisor()
        except (client.SupervisorError, OSError) as error:
            ending = "ended on request before it was started"
            reason = ending if self._ending else f"no supervisor on the node: {error}"
            for message in batch:
                self._exited(Exit(0, message.token, _failed(reason)))
            return
        for message in batch:
            if isinstance(message, Launch):
                self._launch(supervisor, message)
            elif isinstance(message, Signal):
                supervisor.send(b"signal", message.token.encode(), b"%d" % message.signum)
            elif message.timeout is None:
                supervisor.send(b"kill", message.token.encode())
            else:
                supervisor.send(b"terminate", message.token.encode(), b"%r" % message.timeout)

    async def _supervisor(self) -> Client:
        async with self._starting:
            if self._mopping is not None:
                await self._mopping
                self._client = self._mopping = None
            if self._ending:
                raise client.SupervisorError("the session is ending")
            if self._client is None:
                self._client = await self._start()
            return self._client

    async def _start(self) -> Client:
        self._gone.clear()
        client.make_directory(self._directory)
        arguments = (self._directory, self._raylet, self._session.orphan_grace, self._session.grace)
        await asyncio.get_running_loop().run_in_executor(None, client.start, *arguments)
        supervisor = await Client.connect(self._directory, self._on_frame, self._on_lost)
        supervisor.send(b"base", *(name + b"=" + value for name, value in self._base.items()))
        return supervisor

    def _launch(self, supervisor: Client, message: Launch) -> None:
        opts, token = message.opts, message.token
        self._live.add(token)
        base = self._base if opts.inherit_env else {}
        try:
            spec = Spec(
                token=token.encode(),
                program=os.fsencode(opts.program),
                argv=[os.fsencode(opts.program if opts.arg0 is None else opts.arg0), *map(os.fsencode, opts.args)],
                cwd=os.fsencode(self._cwd if opts.cwd is None else os.path.join(self._cwd, opts.cwd)),  # noqa: PTH118
                environ=additions(opts, self._cookie(token), self._raylet_environ),
                unset=removals(base, opts.env_remove) if opts.env_remove else [],
                inherit=opts.inherit_env,
                stdout=self._log(message, "stdout"),
                stderr=self._log(message, "stderr"),
                tail_lines=opts.tail_lines,
            )
            supervisor.send(b"launch", *spec.fields())
        except ProtocolError as error:
            text = f"{opts.program}: arguments and environment are too long for exec (E2BIG): {error}"
            self._exited(Exit(0, token, ExitReport(126, None, False, text, ())))

    def _log(self, message: Launch, stream: str) -> bytes:
        if not message.opts.want_stdio:
            return b""
        return os.fsencode(self._logs / log_name(self._session.name, message.proc_id, message.token, stream))

    def _on_frame(self, verb: bytes, fields: list[bytes]) -> None:
        if verb == b"exit":
            self._exited(_exit(fields))
        elif verb == b"started":
            self._started(fields)
        elif verb == b"hello":
            self._supervisor_pid = int(fields[0])
        elif verb == b"note":
            _logger.warning("%s", fields[0].decode(errors="replace"))

    def _on_lost(self) -> None:
        self._mopping = asyncio.ensure_future(self._mop_up())

    async def _mop_up(self) -> None:
        """The supervisor is gone. Its guard kills what it left; if that was killed too, it is up to us."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, client.wait_until_free, self._directory, MOP_UP)
        if self._live:
            cookies = {self._cookie(token).encode() for token in self._live}
            await loop.run_in_executor(None, mop_up, cookies, MOP_UP)
        words = client.last_words(self._directory)
        reason = "the node's supervisor was lost, and the proc with it" + (f": {words}" if words else "")
        for token in list(self._live):
            self._exited(Exit(0, token, _failed(reason)))
        client.remove_directory(self._directory)
        if self._supervisor_pid:
            remove_spare(self._logs, self._supervisor_pid)
        self._gone.set()

    def _cookie(self, token: str) -> str:
        return f"{self._session.name}/{token}"

    # -- the end --------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """The call to the spawner never returns; it fails when the spawner is gone for good."""
        while True:
            try:
                await self._spawner.serve_watch.remote()
            except ActorUnavailableError:  # out of reach for now: Ray has not given it up
                await asyncio.sleep(1)
            except RayError:
                break
        _logger.info("the spawner of session %s is gone: ending its procs", self._session.name)
        await self.end(self._session.grace)
        ray.kill(ray.get_runtime_context().current_actor)


def _ray_node() -> Any:
    """Ray's own description of this node; it has no public name for the log directory."""
    from ray._private import worker  # noqa: PLC0415  # private: kept to this place

    return worker._global_node  # noqa: SLF001


def _failed(reason: str) -> ExitReport:
    return ExitReport(None, None, False, reason, ())


def _exit(fields: list[bytes]) -> Exit:
    sequence, token, kind, reason, value, core, _when, *tail = fields
    number = int(value) if value else None
    lines = [line.decode() for line in tail]
    if kind == b"failed":
        report = ExitReport(number, None, False, reason.decode(errors="replace"), lines)
    elif kind == b"signaled":
        report = ExitReport(None, number, core == b"1", None, lines)
    else:
        report = ExitReport(number, None, False, None, lines)
    return Exit(int(sequence), token.decode(), report)
