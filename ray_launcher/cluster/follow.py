"""Read log files while they grow, without a share in the writing process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from ray_launcher.cluster.logfiles import Piece, read

#: Seconds between two looks at files that somebody follows, and at most this share of the time for looking.
_LOOK, _SHARE = 0.03, 0.1
#: Seconds after which an answer without news is given: who asked may have more files to ask for by then.
_PATIENCE = 2.0
#: Bytes of all files in one answer.
_ANSWER = 4 << 20


async def read_logs(
    directory: Path, wants: dict[str, int], live: Callable[[str], bool], *, timed: bool = False
) -> dict[str, Piece]:
    """What the files hold behind the wanted offsets, for those with news; `last` where there never will be more.

    wants: {file name in `directory`: offset in bytes}; a missing file is an empty one.  live: whether the file of this
    name may still grow.  timed: see `Piece`. Waits a while for news: bytes, or that a file does not grow any more.
    Files for which there is no room in the answer are left out; ask for them first the next time.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _PATIENCE
    while True:
        began = loop.time()
        news = _look(directory, wants, live, timed)
        now = loop.time()
        if news or now >= give_up:
            return news
        await asyncio.sleep(max(_LOOK, (now - began) / _SHARE))


def _look(directory: Path, wants: dict[str, int], live: Callable[[str], bool], timed: bool) -> dict[str, Piece]:
    news: dict[str, Piece] = {}
    room = _ANSWER
    for name, offset in wants.items():
        if room <= 0:
            break
        growing = live(name)  # asked before the file is read: what was written before the end is then seen
        try:
            piece = read(directory / name, offset, timed=timed)
        except OSError:
            continue  # no news for now
        room -= len(piece.data)
        if piece.data or not growing:
            news[name] = piece._replace(last=piece.last and not growing)
    return news
