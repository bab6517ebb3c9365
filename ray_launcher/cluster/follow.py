"""Read log files while they grow, without a share in the writing process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
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


def _read(path: Path, offset: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return b""
    try:
        return os.pread(fd, _CHUNK, offset)
    finally:
        os.close(fd)
