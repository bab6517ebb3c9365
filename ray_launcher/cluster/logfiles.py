"""One log file, as its agent reads it: bytes behind an offset, and where its last lines, or those of a time, begin.

What has been freed of it (see `node.holes`) is left out, with the rest of the line that was cut.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ray_launcher.node import marks
from ray_launcher.node.holes import first_data

#: Bytes of one read, and of one look at the end of a file.
CHUNK = 1 << 20
#: Seconds by which the kernel's clock for files may be behind: better a line too many than one too few.
_TICK = 0.01
#: What keeps a file from being opened for a while only: it must not pass for one that has nothing to read.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)


class Piece(NamedTuple):
    """Bytes of a file. start: their offset.  last: there were none behind them.

    times: (so many of them, the time when they were there), one behind the other; only where that was asked for.
    """

    start: int
    data: bytes
    last: bool
    times: tuple[tuple[int, float], ...] = ()


def read(path: Path, offset: int, *, timed: bool = False) -> Piece:
    """What is behind `offset`, or behind what has been freed from there on. A missing file is an empty one.

    Raises OSError where that may pass.
    """
    with _opened(path) as fd:
        if fd is None:
            return Piece(offset, b"", last=True)
        start = offset
        while True:
            data = os.pread(fd, CHUNK, start)
            kept = first_data(fd, start) if data else start  # looked at last: it may just have been freed
            if kept == start:
                break
            start = kept
        last = len(data) < CHUNK
        if start > offset:
            cut = data.find(b"\n") + 1
            start, data = start + cut, data[cut:]
        return Piece(start, data, last, _times(path, fd, start, len(data)) if timed and data else ())


def _times(path: Path, fd: int, start: int, count: int) -> tuple[tuple[int, float], ...]:
    found: list[tuple[int, float]] = []
    told = 0
    with _opened(_marks_of(path)) as marked:
        for when, size in () if marked is None else marks.Marks(marked).behind(start):
            until = min(size - start, count)
            found.append((until - told, when))
            told = until
            if told == count:
                break
    if told < count:  # nobody has looked since
        found.append((count - told, os.fstat(fd).st_mtime))
    return tuple(found)


def tail_offset(path: Path, lines: int) -> int:
    """Where the last `lines` lines of a file begin; a last line without its newline counts. 0 for a missing file."""
    with contextlib.suppress(OSError):  # it cannot be opened for now: better all of it than none
        return _tail_offset(path, lines)
    return 0


def _tail_offset(path: Path, lines: int) -> int:
    with _opened(path) as fd:
        if fd is None:
            return 0
        end = os.fstat(fd).st_size
        if lines == 0 or end == 0:
            return end
        first = first_data(fd)
        newlines = lines + (os.pread(fd, 1, end - 1) == b"\n")  # to be found before that line, from the back
        while end > first:
            start = max(first, end - CHUNK)
            block = os.pread(fd, end - start, start)
            found = block.count(b"\n")
            if found >= newlines:
                return start + _position(block, newlines) + 1
            newlines -= found
            end = start
        return 0  # `read` sees to what has been freed


def since_offset(path: Path, since: float) -> int:
    """Where the first line begins that was written since that time, see `marks`. 0 for a missing file."""
    with contextlib.suppress(OSError):  # as above
        return _since_offset(path, since - _TICK)
    return 0


def _since_offset(path: Path, since: float) -> int:
    with _opened(path) as fd, _opened(_marks_of(path)) as marked:
        if fd is None:
            return 0
        size, later = (0, False) if marked is None else marks.Marks(marked).size_before(since)
        found = os.fstat(fd)
        if not later and found.st_mtime < since:
            return found.st_size
        size = max(size, first_data(fd))
        at = size - 1  # a newline there?
        while size and (block := os.pread(fd, CHUNK, at)):
            newline = block.find(b"\n")
            if newline >= 0:
                return at + newline + 1
            at += len(block)
        return at if size else 0


def _position(block: bytes, nth: int) -> int:
    """Of the nth newline, counted from the end."""
    at = len(block)
    for _ in range(nth):
        at = block.rindex(b"\n", 0, at)
    return at


def _marks_of(path: Path) -> Path:
    return Path(os.fsdecode(marks.path_of(os.fsencode(path))))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in _PASSING:
            raise
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
