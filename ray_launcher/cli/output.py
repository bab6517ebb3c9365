"""Showing what procs write: bytes as they are for one proc, whole lines behind their rank for several."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import threading
from collections.abc import Callable
from typing import Protocol

STDOUT, STDERR = 1, 2
#: Bytes of one line after which it is broken, lest a program that writes no newline fills our memory.
LONGEST_LINE = 1 << 20
#: Seconds that a message waits for output that is being written.
_PATIENCE = 1.0
#: To the start of the line, which is emptied.
_CLEAR = b"\r\x1b[K"


class OutputAbandonedError(Exception):
    """Nobody wants to see the rest."""


class View(Protocol):
    """What becomes of the output of procs."""

    def show(self, rank: int, fd: int, data: bytes) -> None:
        """Bytes that proc `rank` wrote to its `fd`, 1 or 2."""

    def finish(self) -> None:
        """There is no more."""


class Screen:
    """Our own stdout and stderr, shared by the thread that shows output and the one that has something to say.

    On a terminal there may be a live line below the output: it gives way to what is written, and comes back below.
    """

    def __init__(self, on_closed: Callable[[OSError], object]) -> None:
        """`on_closed(error)` is called when one of them cannot be written to any more; what is left for it is lost."""
        self.abandoned = threading.Event()
        #: Whether there can be a live line: stderr is a terminal that can empty a line.
        self.live_lines = os.isatty(STDERR) and os.environ.get("TERM", "dumb") != "dumb"
        self._on_closed = on_closed
        self._closed: set[int] = set()
        self._stderr = threading.Lock()
        self._live, self._drawn = "", False
        self._line_begun = False  # the program's last line on the terminal has no end yet

    def write(self, fd: int, data: bytes) -> None:
        """All of `data`, however long it takes. Raises OutputAbandonedError once that is set."""
        shown = self.live_lines and os.isatty(fd)
        with self._stderr if fd == STDERR or shown else contextlib.nullcontext():
            if shown:
                self._clear()
            rest = memoryview(data)
            while rest and fd not in self._closed:
                rest = rest[self._write_some(fd, rest) :]
            if shown and data:
                self._line_begun = not data.endswith(b"\n")
                self._draw()

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
        waited = self._stderr.acquire(timeout=_PATIENCE)
        try:
            start = b"\n" if after_control_c and os.isatty(STDERR) and not self._drawn else b""
            self._clear()
            with contextlib.suppress(OSError):
                os.write(STDERR, start + f"ray-launcher: {text}\n".encode(errors="surrogateescape"))
            self._line_begun = False
            self._draw()
        finally:
            if waited:
                self._stderr.release()

    def live(self, text: str) -> None:
        """Have this as the live line, "" for none. A terminal that is busy, or stopped, goes without for now."""
        if self.live_lines and self._stderr.acquire(timeout=_PATIENCE):
            try:
                self._clear()
                self._live = "".join(each if each.isprintable() else "?" for each in text)
                self._draw()
            finally:
                self._stderr.release()

    def _clear(self) -> None:
        if self._drawn:
            self._drawn = False
            self._put(_CLEAR)

    def _draw(self) -> None:
        """As much as one line has room for, the last column left free: a terminal might go on to the next line."""
        if self._live and not self._line_begun and select.select([], [STDERR], [], 0)[1]:
            self._drawn = True
            width = max(shutil.get_terminal_size().columns - 1, 0)
            self._put(self._live[:width].encode(errors="replace"))

    @staticmethod
    def _put(data: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(STDERR, data)


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
