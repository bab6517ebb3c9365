"""When a log file was written: marks beside it, each a time and the size that it had then.

Programs write their lines without times, and nobody reads all of them as they come. But the supervisor looks at what
grows about once a second, and the file's own time of modification stands for what has come since: together they tell
of each byte when it was there at the latest, good to a second, or to five where the file was quiet before.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False  # typing's own costs the supervisor a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterator

_MARK = struct.Struct("<dQ")
SIZE = _MARK.size
_END = b".times"
#: Of one read.
_MANY = 4096


def path_of(log: bytes) -> bytes:
    """Where the marks of a log file are."""
    return log + _END


def write(fd: int, number: int, time: float, size: int) -> None:
    """Set mark `number`. One that was written in part before is overwritten. Raises OSError."""
    os.pwrite(fd, _MARK.pack(time, size), number * SIZE)


class Marks:
    """Those of a file that is open for reading. What was freed of it is marks of time 0 and size 0."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._count = os.fstat(fd).st_size // SIZE

    def behind(self, offset: int) -> Iterator[tuple[float, int]]:
        """Those whose size is more than `offset`, in order: the first is about the byte there."""
        at = self._first(1, offset + 1)
        while at < self._count:
            some = os.pread(self._fd, SIZE * min(_MANY, self._count - at), SIZE * at)
            some = some[: len(some) // SIZE * SIZE]
            if not some:
                return
            yield from _MARK.iter_unpack(some)
            at += len(some) // SIZE

    def size_before(self, time: float) -> tuple[int, bool]:
        """(the last size of a mark before that time, or 0; whether there is a later mark)."""
        at = self._first(0, time)
        return (int(self._read(at - 1)[1]) if at else 0), at < self._count

    def freeable(self, offset: int) -> int:
        """Bytes of marks that are about nothing behind `offset`."""
        return SIZE * self._first(1, offset + 1)

    def _first(self, field: int, value: float) -> int:
        """The number of the first mark with a field of at least that value."""
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if self._read(middle)[field] < value:
                low = middle + 1
            else:
                high = middle
        return low

    def _read(self, number: int) -> tuple[float, int]:
        found = os.pread(self._fd, SIZE, SIZE * number)
        if len(found) < SIZE:  # somebody has cut the file
            return float("inf"), 1 << 63
        time, size = _MARK.unpack(found)
        return time, size
