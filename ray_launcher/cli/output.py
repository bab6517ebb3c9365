"""Showing what procs write: bytes as they are for one proc, whole lines behind their rank for several."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from typing import Protocol

STDOUT, STDERR = 1, 2
#: Bytes of one line after which it is broken, lest a program that writes no newline fills our memory.
LONGEST_LINE = 1 << 20
#: Seconds that a message waits for output that is being written.
_PATIENCE = 1.0


class OutputAbandonedError(Exception):
    """Nobody wants to see the rest."""


class View(Protocol):
    """What becomes of the output of procs."""

    def show(self, rank: int, fd: int, data: bytes) -> None:
        """Bytes that proc `rank` wrote to its `fd`, 1 or 2."""

    def finish(self) -> None:
        """There is no more."""


class Screen:
    """Our own stdout and stderr, shared by the thread that shows output and the one that has something to say."""

    def __init__(self, on_closed: Callable[[OSError], object]) -> None:
        """`on_closed(error)` is called when one of them cannot be written to any more; what is left for it is lost."""
        self.abandoned = threading.Event()
        self._on_closed = on_closed
        self._closed: set[int] = set()
        self._stderr = threading.Lock()

    def write(self, fd: int, data: bytes) -> None:
        """All of `data`, however long it takes. Raises OutputAbandonedError once that is set."""
        with self._stderr if fd == STDERR else contextlib.nullcontext():
            rest = memoryview(data)
            while rest and fd not in self._closed:
                rest = rest[self._write_some(fd, rest) :]

    def _write_some(self, fd: int, data: memoryview) -> int:
        if self.abandoned.is_set():
            raise OutputAbandonedError
        try:
            return os.write(fd, data)
        except BlockingIOError:  # whoever shares the stream with us has made it so
            select.select([], [fd], [], 1.0)
        except OSError as error:
            self._closed.add(fd)
            self._on_closed(error)
        return 0

    def say(self, text: str, *, after_control_c: bool = False) -> None:
        """A line of our own on stderr, which may be gone. `after_control_c`: a terminal has just shown `^C`."""
        start = "\n" if after_control_c and os.isatty(STDERR) else ""
        line = f"{start}ray-launcher: {text}\n".encode(errors="surrogateescape")
        waited = self._stderr.acquire(timeout=_PATIENCE)
        try:
            with contextlib.suppress(OSError):
                os.write(STDERR, line)
        finally:
            if waited:
                self._stderr.release()


class Plain:
    """One proc: every byte as it comes."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def show(self, rank: int, fd: int, data: bytes) -> None:  # noqa: ARG002  # there is one
        """See `View.show`."""
        self._screen.write(fd, data)

    def finish(self) -> None:
        """See `View.finish`."""


class Prefixed:
    """Several procs: whole lines behind `[rank] `; the last one too, whether or not it was terminated."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._begun: dict[tuple[int, int], bytes] = {}  # lines without an end yet, by (rank, fd)

    def show(self, rank: int, fd: int, data: bytes) -> None:
        """See `View.show`."""
        lines, newline, rest = data.rpartition(b"\n")
        begun = self._begun.pop((rank, fd), b"")
        if newline:
            self._write(rank, fd, begun + lines)
            begun = b""
        begun += rest
        if len(begun) > LONGEST_LINE:
            self._write(rank, fd, begun)
        elif begun:
            self._begun[rank, fd] = begun

    def finish(self) -> None:
        """See `View.finish`."""
        for (rank, fd), line in sorted(self._begun.items()):
            self._write(rank, fd, line)
        self._begun.clear()

    def _write(self, rank: int, fd: int, lines: bytes) -> None:
        prefix = b"[%d] " % rank
        self._screen.write(fd, prefix + lines.replace(b"\n", b"\n" + prefix) + b"\n")
