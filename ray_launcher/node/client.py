"""The agent's side of the socket: start the node's supervisor or find the one that runs, and talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from ray_launcher.node.failures import relief
from ray_launcher.node.protocol import FrameReader, ProtocolError, pack

_MAIN = Path(__file__).with_name("main.py")
_LOG = "supervisor.log"
#: The environment of a supervisor. With its cookie one that runs inside a proc belongs to that proc's tree.
_HANDED_DOWN = ("LD_LIBRARY_PATH", "RAY_LAUNCHER_ID")


class SupervisorError(Exception):
    """The supervisor could not be started or reached; the text says why."""


def runtime_directory(name: str) -> Path:
    """The directory for the supervisor of agent `name`: always the same, so that it is found again.

    `tempfile.gettempdir()` would go elsewhere while the disk is full.
    """
    given = (os.environ.get(variable) for variable in ("TMPDIR", "TEMP", "TMP"))
    place = next((path for path in given if path and Path(path).is_dir()), "/tmp")  # noqa: S108  # ours is below it
    return Path(place).absolute() / f"ray-launcher-{os.geteuid()}" / name


def make_directory(path: Path) -> None:
    """Create the parent of `path` for this user alone. Raises `SupervisorError` where either is somebody else's.

    `path` itself is made by the supervisor that is going to serve there: an agent that is killed here leaves nothing.
    """
    for directory in (path.parent, path):
        try:
            if directory is not path:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = directory.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            why = f"{error.strerror}{_relief(error.errno, path)}"
            raise SupervisorError(f"cannot create the directory {directory}: {why}") from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise SupervisorError(f"{directory} must be a directory of user {os.geteuid()} that nobody else can enter")


def remove_directory(path: Path) -> None:
    """Remove what a supervisor that has ended leaves, and the parent when it was the last."""
    for name in ("socket", _LOG):
        (path / name).unlink(missing_ok=True)
    shutil.rmtree(path / "secrets", ignore_errors=True)
    for directory in (path, path.parent):
        with contextlib.suppress(OSError):  # the guard took it, or others' directories are in it
            directory.rmdir()


def start(
    directory: Path,
    raylet: int,
    orphan_grace: float,
    end_grace: float,
    *,
    leftover_grace: float = 2.0,
    kill_bound: float = 10.0,
) -> None:
    """Start a supervisor and return once it listens. Does nothing when `directory` has one already.

    directory: see `make_directory`.  raylet: a pid; the supervisor ends when it does; 0 for none.
    Seconds: orphan_grace without an agent after which it ends; end_grace from TERM to KILL then; leftover_grace from
    TERM to KILL for what outlives its leader; kill_bound of repeated KILL after which a process is given up.
    Raises `SupervisorError`, and then the directory is gone.
    """
    seconds = (orphan_grace, end_grace, leftover_grace, kill_bound)
    command = [sys.executable, "-I", "-S", str(_MAIN), str(directory), str(raylet), *map(str, seconds)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _HANDED_DOWN if name in os.environ},
            cwd="/",
            start_new_session=True,
            timeout=30,
            check=False,
        )
    except OSError as error:
        _remove_if_free(directory)
        raise SupervisorError(f"cannot start the supervisor: {error}{_relief(error.errno, directory)}") from error
    except subprocess.SubprocessError as error:
        raise SupervisorError(f"cannot start the supervisor: {error}") from error
    said = done.stdout.decode(errors="replace").strip()  # not the exit status: a Ray worker may ignore SIGCHLD, and
    if said and not said.startswith("failed "):  # then it is always 0
        return
    words = last_words(directory)
    _remove_if_free(directory)
    if said:
        _, code, text = said.split(" ", 2)
        raise SupervisorError(f"the supervisor did not start: {text}{_relief(int(code), directory)}")
    raise SupervisorError(f"the supervisor did not start: {words or done.returncode}")


def _relief(code: int | None, directory: Path) -> str:
    return relief(code or 0, f"the directory {directory.parent.parent}")


def _remove_if_free(directory: Path) -> None:
    """Remove what a start that has failed leaves, unless somebody serves there, or is about to."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if _lock(fd):
            remove_directory(directory)
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    """Take the lock of a directory, until `fd` is closed; False where a supervisor, or its guard, has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_until_free(directory: Path, timeout: float) -> bool:
    """Wait until neither a supervisor nor its guard is left in `directory`, at most `timeout` seconds; True if so."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # the guard took it with it
            return True
        except OSError:  # no descriptor left: that may pass
            free = False
        else:
            free = _lock(fd)
            os.close(fd)
        if free or time.monotonic() >= deadline:
            return free
        time.sleep(0.005)  # the lock has no way to be waited for with a deadline


def last_words(directory: Path) -> str:
    """What a supervisor wrote to stderr, usually nothing: its end is then explained by its traceback."""
    try:
        return (directory / _LOG).read_text(errors="replace")[-2000:].strip()
    except OSError:
        return ""


class Client(asyncio.Protocol):
    """One connection to a supervisor, in an asyncio loop.

    `on_frame(verb, fields)` is called for every frame that arrives, `on_lost()` once when the connection has ended.
    """

    def __init__(self, on_frame: Callable[[bytes, list[bytes]], None], on_lost: Callable[[], None]) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._outbox = bytearray()
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
            _, client = await loop.create_unix_connection(lambda: cls(on_frame, on_lost), f"/proc/self/fd/{fd}/socket")
        finally:
            os.close(fd)
        client.send(b"hello")
        return client

    def send(self, *fields: bytes) -> None:
        """Send one frame. To a supervisor that is gone: nothing, `on_lost` has told. Raises `ProtocolError`."""
        frame = pack(*fields)
        if self._transport is not None and not self._transport.is_closing():
            if not self._outbox:  # one write, and one wake-up of the supervisor, for all that is sent in this step
                asyncio.get_running_loop().call_soon(self._flush)
            self._outbox += frame

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(bytes(self._outbox))
        self._outbox.clear()

    def close(self) -> None:
        """Let go of the supervisor, which then waits for another agent as long as its orphan grace."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's call: the socket is open."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Asyncio's call: bytes have arrived."""
        try:
            frames = self._reader.feed(data)
        except ProtocolError:
            self.close()
            return
        for verb, *fields in frames:
            self._on_frame(verb, fields)

    def connection_lost(self, _error: Exception | None) -> None:
        """Asyncio's call: the socket is closed, by whichever side."""
        self._on_lost()
