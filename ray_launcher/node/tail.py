"""The last lines of a file that a proc wrote, read backwards and bounded whatever the file's size."""

from __future__ import annotations

import os

#: A longer line keeps its last bytes, behind `TRUNCATED`.
MAX_LINE = 64 << 10
TRUNCATED = "[truncated] "
_BLOCK = 64 << 10
#: How far back a search goes for the start of an overlong line: a few milliseconds of reading.
_SEARCH = 16 << 20


def read_tail(path: str | bytes, lines: int) -> list[str]:
    """Return the last `lines` lines of the file at `path`, oldest first; [] when it is missing or empty.

    Lines end at `\\n`, which is dropped; a final unterminated line counts, and blank lines are kept. Bytes that
    are no UTF-8 become U+FFFD. A line over 64 KiB keeps its last 64 KiB; behind one that is longer than 16 MiB
    nothing older is looked for.
    """
    if lines <= 0:
        return []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        return _last_lines(fd, lines)
    except OSError:
        return []
    finally:
        os.close(fd)


def _last_lines(fd: int, wanted: int) -> list[str]:
    end = os.fstat(fd).st_size
    if not end:
        return []
    if os.pread(fd, 1, end - 1) == b"\n":
        end -= 1  # the terminator of the last line starts no line of its own
    stop = max(0, end - max(_SEARCH, wanted * (MAX_LINE + 1)))
    found: list[str] = []
    line = b""  # what is known of the line being searched, one byte over MAX_LINE at the most
    while end > stop and len(found) < wanted:
        start = max(stop, end - _BLOCK)
        first, *rest = os.pread(fd, end - start, start).split(b"\n")
        for part in reversed(rest):
            found.append(_decode(part + line))
            line = b""
        line = (first + line)[-MAX_LINE - 1 :]
        end = start
    if len(found) < wanted:
        found.append(_decode(line, cut=stop > 0))
    return found[:wanted][::-1]


def _decode(line: bytes, cut: bool = False) -> str:
    text = line[-MAX_LINE:].decode("utf-8", "replace")
    return TRUNCATED + text if cut or len(line) > MAX_LINE else text
