"""Read log files while they grow, without a share in the writing process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

#: Seconds between two looks at files that somebody follows, and at most this share of the time for looking.
_LOOK, _SHARE = 0.03, 0.1
#: Seconds after which an answer without news is given: who asked may have more files to ask for by then.
_PATIENCE = 2.0
#: Bytes of one file, and of all files, in one answer; of one look at the end of a file.
_CHUNK, _ANSWER = 1 << 20, 4 << 20
#: What keeps a file from being opened for a while only: it must not pass for one that has nothing to read.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)

News = dict[str, tuple[bytes, bool]]


async def read_logs(directory: Path, wants: dict[str, int], live: Callable[[str], bool]) -> News:
    """What the files hold behind the wanted offsets: {name: (bytes, whether that is all)} for those with news.

    wants: {file name in `directory`: offset in bytes}; a missing file is an empty one.  live: whether the file of this
    name may still grow. Waits a while for news: bytes, or that a file does not grow any more. Files for which there is
    no room in the answer are left out; ask for them first the next time.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _PATIENCE
    while True:
        began = loop.time()
        news = _look(directory, wants, live)
        now = loop.time()
        if news or now >= give_up:
            return news
        await asyncio.sleep(max(_LOOK, (now - began) / _SHARE))


def _look(directory: Path, wants: dict[str, int], live: Callable[[str], bool]) -> News:
    news: News = {}
    room = _ANSWER
    for name, offset in wants.items():
        if room <= 0:
            break
        growing = live(name)  # asked before the file is read: what was written before the end is then seen
        try:
            data = _read(directory / name, offset)
        except OSError:
            continue  # no news for now
        room -= len(data)
        if data or not growing:
            news[name] = (data, not growing and len(data) < _CHUNK)
    return news


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
    except OSError as error:
        if error.errno in _PASSING:
            raise
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
