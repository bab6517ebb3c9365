"""Looking at the log files of running procs: when they grew, and that they keep within their bounds.

The program writes to its file as ever and is never touched or waited for. What is beyond the bound is freed from the
beginning of the file, see `holes`; between two looks it may be beyond by as much as is written meanwhile.
"""

from __future__ import annotations

import errno
import os
import time

from ray_launcher.node import holes, marks, reserve

TYPE_CHECKING = False  # typing's own costs the supervisor a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable

    from ray_launcher.node.timers import Timer, Timers

#: Seconds between two looks; the same while a bounded file grows fast; at most this share of the time is for looking.
_LOOK, _SOON, _SHARE = 1.0, 0.05, 0.1
#: A file without a bound that has not grown for so many looks is looked at every so manieth time only.
_QUIET = 5
#: What a file system says that cannot punch holes.
_NEVER = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV)


class _Log:
    """One file. freed: up to which offset.  marks: how many there are.  quiet: looks that found nothing new."""

    __slots__ = ("freed", "limit", "marks", "quiet", "size")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = self.freed = self.marks = self.quiet = 0


class Growth:
    """The files that the procs of one supervisor write to. tell(text): called where a bound cannot be kept, once."""

    def __init__(self, timers: Timers, tell: Callable[[str], None]) -> None:
        self._timers, self._tell = timers, tell
        self._logs: dict[bytes, _Log] = {}  # by path
        self._timer: Timer | None = None
        self._looks = 0
        self._told = False

    def add(self, path: bytes, limit: int) -> None:
        """Look at this file from now on. limit: bytes that are kept of it; 0 for all."""
        self._logs[path] = _Log(limit)
        if self._timer is None:
            self._timer = self._timers.after(_LOOK, self._look_at_all)

    def done(self, path: bytes) -> None:
        """Nobody writes to it any more."""
        log = self._logs.pop(path, None)
        if log is None:
            return
        if log.limit or log.marks:
            self._look(path, log)

    def freed(self, path: bytes) -> int:
        """How much of its beginning is no more."""
        log = self._logs.get(path)
        return 0 if log is None else log.freed

    def _look_at_all(self) -> None:
        began = time.monotonic()
        fast = False
        self._looks += 1
        everywhere = not self._looks % _QUIET
        for path, log in self._logs.items():
            if everywhere or log.limit or log.quiet < _QUIET:
                fast = self._look(path, log) or fast
        rest = (time.monotonic() - began) / _SHARE
        self._timer = self._timers.after(max(_SOON if fast else _LOOK, rest), self._look_at_all) if self._logs else None

    def _look(self, path: bytes, log: _Log) -> bool:
        """Whether it grows fast for its bound."""
        try:
            found = os.stat(path, follow_symlinks=False)
        except (OSError, ValueError):  # somebody tidied up, or it never came to be
            return False
        grown = found.st_size - log.size
        if grown < 0:  # the program has truncated its own file
            log.freed = log.marks = 0
            _unlink(marks.path_of(path))
        log.size = found.st_size
        log.quiet = 0 if grown else log.quiet + 1
        if not grown or not log.size:
            return False
        block = max(holes.BLOCK, found.st_blksize)
        try:
            self._mark(path, log, found.st_mtime)
            end = (log.size - log.limit) // block * block
            if log.limit and end > log.freed:
                self._free(path, log, end)
        except MemoryError:
            pass  # the next time
        except OSError as error:
            if error.errno in _NEVER and not self._told:
                self._told = True
                self._tell(
                    f"the file system of {os.fsdecode(os.path.dirname(path))} cannot free parts of files: "
                    "logs grow beyond their log_limit"
                )
        return bool(log.limit) and grown > log.limit // 4

    @staticmethod
    def _mark(path: bytes, log: _Log, when: float) -> None:
        """Before anything is freed: that counts as a modification."""
        fd = _opened(marks.path_of(path), os.O_CREAT)
        try:
            marks.write(fd, log.marks, when, log.size)
            log.marks += 1
        finally:
            reserve.close(fd)

    @staticmethod
    def _free(path: bytes, log: _Log, end: int) -> None:
        fd = _opened(path)
        try:
            holes.free(fd, log.freed, end)
            log.freed = end
        finally:
            reserve.close(fd)
        fd = _opened(marks.path_of(path))
        try:
            old = marks.Marks(fd).freeable(end) // holes.BLOCK * holes.BLOCK
            if old:
                holes.free(fd, 0, old)
        finally:
            reserve.close(fd)


def _opened(path: bytes, flags: int = 0) -> int:
    return reserve.with_room(os.open, path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)


def _unlink(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
