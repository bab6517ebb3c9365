"""A real supervisor for one test, a plain blocking client for it, and the check that nothing is left of either."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import os
import select
import shutil
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from limits import without_descriptors

from ray_launcher.node import client
from ray_launcher.node.limits import Limits
from ray_launcher.node.protocol import FrameReader, pack
from ray_launcher.node.spec import Spec

#: Seconds after which a wait fails; far beyond what anything here takes.
DEADLINE = 20.0

_T = TypeVar("_T")


class Exit(NamedTuple):
    """One exit report as it came over the wire."""

    sequence: int
    token: bytes
    kind: str
    reason: str
    value: int | None
    core: bool
    tail: list[str]

    @classmethod
    def parse(cls, fields: Sequence[bytes]) -> Exit:
        sequence, token, _note, kind, reason, value, core, _time, *tail = fields
        number = int(value) if value else None
        lines = [line.decode() for line in tail]
        return cls(int(sequence), token, kind.decode(), os.fsdecode(reason), number, core == b"1", lines)


def until(probe: Callable[[], _T], what: str, deadline: float = DEADLINE) -> _T:
    """Wait until `probe` returns something true; its last value is in the failure."""
    give_up = time.monotonic() + deadline
    while not (seen := probe()):
        assert time.monotonic() < give_up, f"not within {deadline} s: {what}; last seen: {seen!r}"
        time.sleep(0.002)
    return seen


def stat(pid: int) -> list[str]:
    """State, parent, group, session and so on; [] when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def exists(pid: int) -> bool:
    """False for a zombie that has become init's: init takes its time."""
    return stat(pid)[:2] not in ([], ["Z", "1"])


def running(pid: int) -> bool:
    return "".join(stat(pid)[:1]) not in ("", "Z", "X")


def marked(marker: str) -> dict[int, str]:
    """Every process, zombies left out, that bears the marker in its command line or environment."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            cmdline, environ = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if marker.encode() in cmdline + environ:
            found[int(process.name)] = os.fsdecode(cmdline)[:200]
    return {pid: cmdline for pid, cmdline in found.items() if running(pid) and pid != os.getpid()}


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


class Gate:
    """Something that a proc can wait for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    def open(self) -> None:
        self.path.write_text("go\n")


class Wire:
    """One connection to a supervisor."""

    def __init__(self, address: Path | str, hello: bool = True) -> None:
        """address: a supervisor's directory, or the name of an abstract socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.frames: list[list[bytes]] = []
        self.closed = False
        self._reader = FrameReader()
        try:
            if isinstance(address, str):
                self.sock.connect(address)
            else:
                with _opened(address) as fd:  # a socket's path may have 107 bytes and no more
                    self.sock.connect(f"/proc/self/fd/{fd}/socket")
            if hello:
                self.send(b"hello")
        except OSError:  # it may be ending just now
            self.sock.close()
            raise

    def send(self, *fields: bytes) -> None:
        self.sock.sendall(pack(*fields))

    def poll(self, seconds: float) -> bool:
        """Read what is there, waiting `seconds` for it; False when nothing came."""
        ready, _, _ = select.select([self.sock], [], [], seconds)
        if not ready or self.closed:
            return False
        try:
            data = self.sock.recv(1 << 18)
        except ConnectionError:
            data = b""
        self.closed = not data
        self.frames += self._reader.feed(data)
        return True

    def expect(self, match: Callable[[list[bytes]], bool], what: str, deadline: float = DEADLINE) -> list[bytes]:
        """The first frame that matches, taken out."""
        give_up = time.monotonic() + deadline
        while True:
            for frame in self.frames:
                if match(frame):
                    self.frames.remove(frame)
                    return frame
            assert not self.closed, f"the supervisor closed the connection before {what}; frames: {self.frames!r:.500}"
            assert time.monotonic() < give_up, f"not within {deadline} s: {what}; frames: {self.frames!r:.500}"
            self.poll(0.05)

    def verb(self, verb: bytes, deadline: float = DEADLINE) -> list[bytes]:
        return self.expect(lambda frame: frame[0] == verb, verb.decode(), deadline)[1:]

    def exit(self, token: bytes, deadline: float = DEADLINE) -> Exit:
        frame = self.expect(lambda frame: frame[0] == b"exit" and frame[2] == token, f"exit of {token!r}", deadline)
        return Exit.parse(frame[1:])

    def barrier(self) -> None:
        """Return when everything sent so far has been carried out: a launch that must fail comes back."""
        token = b"barrier-%d" % next(_numbers)
        self.send(b"launch", *Spec(token=token, program=b"/nonexistent/barrier", argv=[b"barrier"]).fields())
        self.exit(token)

    def wait_closed(self) -> None:
        until(lambda: self.poll(0.05) is not None and self.closed, "the supervisor closes the connection")

    def close(self) -> None:
        self.sock.close()


_numbers = itertools.count(1)


class Rig:
    """One supervisor with its directory and logs, an agent's connection, and a marker that all its procs bear."""

    def __init__(
        self,
        path: Path,
        *,
        raylet: int = 0,
        orphan_grace: float = 60.0,
        end_grace: float = 0.3,
        leftover_grace: float = 0.3,
        kill_bound: float = 10.0,
        directory: Path | None = None,
        logs: Path | None = None,
    ) -> None:
        """directory, logs: elsewhere than below `path`."""
        self.path = path
        self.marker = f"rig-{uuid.uuid4().hex}"
        self.directory = directory or path / "run" / "supervisor"
        self.logs = logs or path / "logs"
        self.logs.mkdir()
        self.base = {b"PATH": b"/usr/local/bin:/usr/bin:/bin"}
        self._start = functools.partial(
            client.start,
            self.directory,
            raylet,
            orphan_grace,
            end_grace,
            leftover_grace=leftover_grace,
            kill_bound=kill_bound,
        )
        self.pid = self.guard = 0
        self._wires: list[Wire] = []

    def start(self) -> None:
        client.make_directory(self.directory)
        self._start()

    def dial(self, hello: bool = True) -> Wire:
        """One more connection, closed after the test."""
        self._wires.append(Wire(self.directory, hello))
        return self._wires[-1]

    def connect(self) -> Wire:
        """Say hello as a new agent; `self.wire` from now on."""
        self.wire = self.dial()
        pid, *self.listed = self.wire.verb(b"hello")
        self.pid = int(pid)
        self.guard = int(stat(self.pid)[1])
        self.wire.send(b"base", *(name + b"=" + value for name, value in self.base.items()))
        return self.wire

    # -- launching ------------------------------------------------------------------------------------------------

    def launch(
        self,
        program: str | bytes,
        *args: str | bytes,
        token: bytes | None = None,
        argv0: str | bytes | None = None,
        cwd: str | bytes | Path = b"",
        env: dict[str, str] | None = None,
        environ: Sequence[bytes] = (),
        unset: Sequence[bytes] = (),
        inherit: bool = True,
        tail_lines: int = 100,
        stdio: bool = True,
        limits: Limits | None = None,
        stdin: bytes = b"",
        log_limit: int = 0,
    ) -> bytes:
        """Send a launch; returns its token."""
        token = b"t%d" % next(_numbers) if token is None else token
        cookie = f"RAY_LAUNCHER_ID={self.marker}/{token.decode()}".encode()
        added = [os.fsencode(f"{name}={value}") for name, value in (env or {}).items()]
        spec = Spec(
            token=token,
            program=os.fsencode(program),
            argv=[os.fsencode(program if argv0 is None else argv0), *map(os.fsencode, args)],
            cwd=os.fsencode(cwd),
            environ=[*added, *environ, cookie],
            unset=list(unset),
            inherit=inherit,
            stdout=os.fsencode(self.log(token, "out")) if stdio else b"",
            stderr=os.fsencode(self.log(token, "err")) if stdio else b"",
            tail_lines=tail_lines,
            limits=limits,
            stdin=stdin,
            log_limit=log_limit,
        )
        self.wire.send(b"launch", *spec.fields())
        return token

    def sh(
        self,
        script: str,
        *args: str,
        token: bytes | None = None,
        tail_lines: int = 100,
        limits: Limits | None = None,
        stdin: bytes = b"",
        log_limit: int = 0,
    ) -> bytes:
        """Launch a shell script; its $0 is the marker."""
        command = ("/bin/sh", "-c", script, self.marker, *args)
        more = {"stdin": stdin, "log_limit": log_limit}
        return self.launch(*command, token=token, tail_lines=tail_lines, limits=limits, **more)  # type: ignore[arg-type]

    def python(
        self,
        script: str,
        *args: str,
        token: bytes | None = None,
        tail_lines: int = 100,
        limits: Limits | None = None,
        stdin: bytes = b"",
        log_limit: int = 0,
    ) -> bytes:
        """Launch a Python script; its last argument is the marker."""
        command = (sys.executable, "-I", "-S", "-c", script, *args, self.marker)
        more = {"stdin": stdin, "log_limit": log_limit}
        return self.launch(*command, token=token, tail_lines=tail_lines, limits=limits, **more)  # type: ignore[arg-type]

    def exit(self, token: bytes, deadline: float = DEADLINE) -> Exit:
        return self.wire.exit(token, deadline)

    def started(self, token: bytes) -> int:
        """The pid of a proc, once its start has been announced."""

        def announced() -> int:
            self.wire.poll(0.05)
            starts = [frame for frame in self.wire.frames if frame[0] == b"started" and token in frame[1::3]]
            return int(starts[0][2::3][starts[0][1::3].index(token)]) if starts else 0

        return until(announced, f"start of {token!r}")

    @contextlib.contextmanager
    def without_descriptors(self) -> Iterator[None]:
        """The supervisor can open no file or connection meanwhile."""
        with without_descriptors(self.pid):
            yield

    def log(self, token: bytes, stream: str) -> Path:
        return self.logs / f"{token.decode()}.{stream}"

    def output(self, token: bytes, stream: str = "out") -> bytes:
        """What was written so far; an empty file may be there no more."""
        try:
            return self.log(token, stream).read_bytes()
        except FileNotFoundError:
            return b""

    def words(self, token: bytes, count: int = 1) -> list[str]:
        """The first `count` lines of a proc's stdout, waited for."""
        until(lambda: self.output(token).count(b"\n") >= count, f"{count} lines from {token!r}")
        return self.output(token).decode(errors="replace").splitlines()[:count]

    def pids(self, token: bytes, count: int = 1) -> list[int]:
        """The same, as the pids that they are."""
        return [int(word) for word in self.words(token, count)]

    def gone(self, *pids: int) -> None:
        """Wait until none of these processes exists, as zombie or otherwise."""
        until(lambda: not any(map(exists, filter(None, pids))), f"{pids} are gone")

    def none_left(self) -> None:
        """Wait until the supervisor has no children and no process bears the marker.

        Something that forks all the time is hard to see in a list of all processes, but always somebody's child.
        """

        def left() -> str:
            try:
                children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
            except OSError:
                children = ""
            return f"{children} {marked(self.marker) or ''}".strip()

        until(lambda: not left() or None, f"nothing of {self.marker} is left; it was {left()}")

    # -- the end --------------------------------------------------------------------------------------------------

    def locked(self) -> bool:
        """Whether a supervisor or its guard is there."""
        try:
            with _opened(self.directory) as fd:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:  # the guard took it with it
            return False
        except BlockingIOError:
            return True
        return False

    def wait_end(self) -> None:
        until(lambda: not self.locked(), "supervisor and guard are gone")

    def stop(self) -> None:
        """End what runs, and assert that nothing is left: process, zombie, socket or file of the supervisor's."""
        words = ""
        try:
            if self.locked():
                with contextlib.suppress(OSError):  # it is ending already
                    wire = self.dial()
                    wire.send(b"stop", b"0")
                    wire.wait_closed()
            self.wait_end()
            words = client.last_words(self.directory)
            left = marked(self.marker)
            self.gone(self.pid, self.guard)
        finally:
            for wire in self._wires:
                wire.close()
            for pid in marked(self.marker):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"processes left: {left}"
        assert not words, f"the supervisor wrote to stderr: {words}"
        client.remove_directory(self.directory)
        assert not self.directory.parent.exists()
        spare = [path.name for path in self.logs.iterdir() if "spare" in path.name]
        assert not spare, f"files left: {spare}"
        shutil.rmtree(self.logs)
