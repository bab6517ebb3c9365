"""Read log files while they grow, without a share in the writing process."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

#: Seconds between two looks at files that somebody follows.
_LOOK = 0.03
#: Bytes of one file in one answer.
_CHUNK = 1 << 20


async def read_logs(directory: Path, wants: dict[str, int], live: Callable[[], bool]) -> dict[str, tuple[bytes, bool]]:
    """What the files hold behind the wanted offsets: {name: (bytes, at the end)} for those with news.

    wants: {file name in `directory`: offset in bytes}; a missing file is an empty one.
    Waits until there is news: bytes, or that `live()` has become false. "At the end" is true for every file once it
    is false and all has been read; ask again for the rest otherwise.
    """
    while True:
        alive = live()  # asked before the files are read: what was written before the end is then seen
        news = {name: data for name, offset in wants.items() if (data := _read(directory / name, offset))}
        if not alive:
            return {name: (news.get(name, b""), len(news.get(name, b"")) < _CHUNK) for name in wants}
        if news:
            return {name: (data, False) for name, data in news.items()}
        await asyncio.sleep(_LOOK)


def tail_offset(path: Path, lines: int) -> int:
    """Where the last `lines` lines of a file begin; a last line without its newline counts. 0 for a missing file."""
    with _opened(path) as fd:
        if fd is None:
            return 0
        end = os.fstat(fd).st_size
        if lines == 0 or end == 0:
            return end
        newlines = lines + (os.pread(fd, 1, end - 1) == b"\n")  # to be found before that line, from the back
        while end > 0:
            start = max(0, end - _CHUNK)
            block = os.pread(fd, end - start, start)
            found = block.count(b"\n")
            if found >= newlines:
                return start + _position(block, newlines) + 1
            newlines -= found
            end = start
        return 0


def _position(block: bytes, nth: int) -> int:
    """Of the nth newline, counted from the end."""
    at = len(block)
    for _ in range(nth):
        at = block.rindex(b"\n", 0, at)
    return at


def _read(path: Path, offset: int) -> bytes:
    with _opened(path) as fd:
        return b"" if fd is None else os.pread(fd, _CHUNK, offset)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
