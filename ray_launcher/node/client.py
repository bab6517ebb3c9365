"""The agent's side of the socket: start the node's supervisor or find the one that runs, and talk to it."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ray_launcher.node.protocol import FrameReader, ProtocolError, pack

_MAIN = Path(__file__).with_name("main.py")
_LOG = "supervisor.log"


class SupervisorError(Exception):
    """The supervisor could not be started or reached; the text says why."""


def make_directory(path: Path) -> None:
    """Create `path` and its parent for this user alone. Raises `SupervisorError` where they are somebody else's."""
    for directory in (path.parent, path):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise SupervisorError(f"{directory} must be a directory of user {os.geteuid()} that nobody else can enter")


def remove_directory(path: Path) -> None:
    """Remove what a supervisor that has ended leaves, and the parent when it was the last."""
    for name in ("socket", _LOG):
        (path / name).unlink(missing_ok=True)
    for directory in (path, path.parent):
        try:
            directory.rmdir()
        except OSError:  # not empty: other sessions' directories
            return


def start(directory: Path, raylet: int, orphan_grace: float, end_grace: float) -> None:
    """Start a supervisor and return once it listens. Does nothing when `directory` has one already.

    directory: made by `make_directory`.  raylet: a pid; the supervisor ends when it does; 0 for none.
    orphan_grace: seconds without an agent after which it ends.  end_grace: seconds from TERM to KILL then.
    Raises `SupervisorError`.
    """
    command = [sys.executable, "-I", "-S", str(_MAIN), str(directory), str(raylet), str(orphan_grace), str(end_grace)]
    with open(directory / _LOG, "ab") as log:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
                cwd="/",
                start_new_session=True,
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise SupervisorError(f"cannot start the supervisor: {error}") from error
    if done.returncode != 3 and not done.stdout.strip():
        raise SupervisorError(f"the supervisor did not start: {last_words(directory) or done.returncode}")


def last_words(directory: Path) -> str:
    """What a supervisor wrote to stderr, usually nothing: its end is then explained by its traceback."""
    try:
        return (directory / _LOG).read_text(errors="replace")[-2000:].strip()
    except OSError:
        return ""


class Client(asyncio.Protocol):
    """One connection to a supervisor, in an asyncio loop.

    `on_frame(verb, fields)` is called for every frame that arrives, `on_lost()` once when the supervisor is gone.
    """

    def __init__(self, on_frame: Callable[[bytes, list[bytes]], None], on_lost: Callable[[], None]) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(
        cls, directory: Path, on_frame: Callable[[bytes, list[bytes]], None], on_lost: Callable[[], None]
    ) -> Client:
        """Connect to the supervisor of `directory` and say hello. Raises OSError when there is none."""
        loop = asyncio.get_running_loop()
        # By way of the open directory, because a socket's path may have 107 bytes and no more.
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _, client = await loop.create_unix_connection(
                lambda: cls(on_frame, on_lost), f"/proc/self/fd/{fd}/socket"
            )
        finally:
            os.close(fd)
        client.send(b"hello")
        return client

    def send(self, *fields: bytes) -> None:
        """Send one frame. To a supervisor that is gone: nothing, `on_lost` has told. Raises `ProtocolError`."""
        frame = pack(*fields)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def close(self) -> None:
        """Let go of the supervisor, which then waits for another agent as long as its orphan grace."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._reader.feed(data)
        except ProtocolError:
            self.close()
            return
        for verb, *fields in frames:
            self._on_frame(verb, fields)

    def connection_lost(self, _error: Exception | None) -> None:
        self._on_lost()
