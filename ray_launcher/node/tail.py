"""The last lines of a file that a proc wrote, read backwards and bounded whatever the file's size."""

from __future__ import annotations

import os

from ray_launcher.node import reserve

#: A longer line keeps its last bytes, behind `TRUNCATED`.
MAX_LINE = 64 << 10
TRUNCATED = "[truncated] "
#: Bounds of a whole tail, so that its report fits into a frame: lines, and bytes kept of them.
MAX_LINES = 100_000
_KEPT = 8 << 20
_BLOCK = 64 << 10
#: How far back a search goes: some ten milliseconds of reading.
_SEARCH = 32 << 20


def read_tail(path: str | bytes | os.PathLike[str], lines: int, begin: int = 0, freed: int = 0) -> list[str]:
    r"""Return the last `lines` lines of the file at `path`, oldest first; [] when it is missing or empty.

    Lines end at `\n`, which is dropped; a final unterminated line counts, and blank lines are kept. Bytes that
    are no UTF-8 become U+FFFD. A line over 64 KiB keeps its last 64 KiB; nothing is looked for further back than
    32 MiB, no more than 8 MiB or 100,000 lines are returned. begin: what lies before this offset is not ours.
    freed: what lies before this one was, and is no more.
    """
    if lines <= 0:
        return []
    try:
        fd = reserve.with_room(os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        return reserve.with_room(_last_lines, fd, min(lines, MAX_LINES), begin, freed)
    except (OSError, MemoryError):
        return []
    finally:
        reserve.close(fd)


def _last_lines(fd: int, wanted: int, begin: int, freed: int) -> list[str]:
    end = os.fstat(fd).st_size
    begin = begin if begin <= end else 0  # the program has truncated its own file
    if end == begin:
        return []
    if os.pread(fd, 1, end - 1) == b"\n":
        end -= 1  # the terminator of the last line starts no line of its own
    stop = max(begin, freed, end - _SEARCH)
    found: list[bytes] = []
    kept = 0
    line = b""  # what is known of the line being searched, one byte over MAX_LINE at the most
    while end > stop and len(found) < wanted and kept < _KEPT:
        start = max(stop, end - _BLOCK)
        first, *rest = os.pread(fd, end - start, start).split(b"\n")
        for part in rest[::-1]:
            found.append((part + line)[-MAX_LINE - 1 :])
            kept += len(found[-1])
            line = b""
        line = (first + line)[-MAX_LINE - 1 :]
        end = start
    lines = [_decode(one) for one in found[:wanted]]
    if len(found) < wanted and kept < _KEPT:
        lines.append(_decode(line, cut=stop > begin))
    return lines[::-1]


def _decode(line: bytes, cut: bool = False) -> str:
    if not cut and len(line) <= MAX_LINE:
        return line.decode("utf-8", "replace")
    shown = line[-MAX_LINE:]
    for _ in range(3):  # the cut may have gone through a character
        if shown[:1] and shown[0] & 0xC0 == 0x80:
            shown = shown[1:]
    return TRUNCATED + shown.decode("utf-8", "replace")
