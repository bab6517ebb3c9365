"""Showing what procs write: bytes as they are for one proc, whole lines behind their rank for several."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Protocol

from ray_launcher import LogChunk
from ray_launcher.cli.outcome import BY_SIGNAL, LAUNCHER_ERROR

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

    def show(self, rank: int, fd: int, data: bytes, time: datetime | None = None) -> None:
        """Bytes that proc `rank` wrote to its `fd`, 1 or 2. time: when, if that is known."""

    def cut(self, rank: int, fd: int) -> None:
        """What comes next does not go on with the line that has begun."""

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
        self._begun: set[int] = set()  # descriptors whose last line has no end yet

    def show(self, rank: int, fd: int, data: bytes, time: datetime | None = None) -> None:  # noqa: ARG002  # there is one
        """See `View.show`."""
        self._screen.write(fd, data)
        if data:
            (self._begun.discard if data.endswith(b"\n") else self._begun.add)(fd)

    def cut(self, rank: int, fd: int) -> None:
        """See `View.cut`."""
        if fd in self._begun:
            self.show(rank, fd, b"\n")

    def finish(self) -> None:
        """See `View.finish`."""


#: What becomes of whole lines: (rank, fd, time, lines), the last without its end, to all that is written.
Frame = Callable[[int, int, "datetime | None", bytes], bytes]


def behind(prefix: Callable[[int, int, datetime | None], bytes]) -> Frame:
    """Each line behind what `prefix(rank, fd, time)` gives."""

    def frame(rank: int, fd: int, time: datetime | None, lines: bytes) -> bytes:
        start = prefix(rank, fd, time)
        return start + lines.replace(b"\n", b"\n" + start) + b"\n"

    return frame


class Lines:
    """Whole lines in a frame; the last one too, whether or not it was terminated. A line has the time of its beginning.

    all_to: write all to this descriptor; None: each stream to its own.
    """

    def __init__(self, screen: Screen, frame: Frame, all_to: int | None = None) -> None:
        self._screen, self._frame, self._all_to = screen, frame, all_to
        self._begun: dict[
            tuple[int, int], tuple[bytes, datetime | None]
        ] = {}  # lines without an end yet, by (rank, fd)

    def show(self, rank: int, fd: int, data: bytes, time: datetime | None = None) -> None:
        """See `View.show`."""
        begun, since = self._begun.pop((rank, fd), (b"", time))
        first, newline, rest = data.partition(b"\n")
        framed = b""
        if newline:
            framed = self._frame(rank, fd, since, begun + first)
            lines, newline, rest = rest.rpartition(b"\n")
            framed += self._frame(rank, fd, time, lines) if newline else b""
            begun, since = b"", time
        else:
            rest = first
        begun += rest
        if len(begun) > LONGEST_LINE:
            framed += self._frame(rank, fd, since, begun)
        elif begun:
            self._begun[rank, fd] = begun, since
        if framed:
            self._write(fd, framed)

    def cut(self, rank: int, fd: int) -> None:
        """See `View.cut`."""
        begun, since = self._begun.pop((rank, fd), (b"", None))
        if begun:
            self._write(fd, self._frame(rank, fd, since, begun))

    def finish(self) -> None:
        """See `View.finish`."""
        for rank, fd in sorted(self._begun):
            self.cut(rank, fd)

    def _write(self, fd: int, framed: bytes) -> None:
        self._screen.write(fd if self._all_to is None else self._all_to, framed)


class Prefixed(Lines):
    """Several procs: whole lines behind `[rank] `."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen, behind(lambda rank, _fd, _time: b"[%d] " % rank))


def code_of_closed(screen: Screen, error: OSError) -> int:
    """The exit code where our output cannot be written: of one that ended quietly, for its reader has gone; or said."""
    if error.errno in (errno.EPIPE, errno.EIO):  # EIO: of a terminal
        return BY_SIGNAL + signal.SIGPIPE
    screen.say(f"cannot write output: {error.strerror}")  # a full disk
    return LAUNCHER_ERROR


def words_of(chunk: LogChunk) -> Iterator[str]:
    """What is missing there, for whoever reads."""
    if chunk.skipped:
        what = f"{chunk.skipped} bytes of the {chunk.stream} of {chunk.proc_id}"
        yield f"{what} were gone, by its log limit, before they were read"
    if chunk.lost:
        yield chunk.lost
