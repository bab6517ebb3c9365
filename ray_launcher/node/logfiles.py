"""The files that procs write to: created for a launch, kept when something was written, used again when not.

On a file system with many files a fresh inode costs more than the whole rest of a launch (0.1-0.5 ms measured on ext4
against 0.03 ms for a rename), and most short procs leave both their files empty. So an empty file is set aside for a
later launch, but only if the kernel grants a write lease on it: it does so only where nobody has it open any more.
"""

from __future__ import annotations

import fcntl
import os
import stat

from ray_launcher.node import reserve

#: Files set aside at the most; more are unlinked.
_SPARE = 256
PREFIX = b"ray-launcher-spare-"


class LogFiles:
    """One per supervisor. Paths are absolute; files belong to this user alone."""

    def __init__(self) -> None:
        self._spare: dict[bytes, list[bytes]] = {}  # by directory
        self._made = 0

    def open(self, path: bytes) -> int:
        """Create `path`, or append to it where it exists; returns a descriptor. Raises OSError."""
        spare = self._spare.get(os.path.dirname(path))
        if spare and not os.path.lexists(path):
            try:
                os.rename(spare[-1], path)
                spare.pop()
            except FileNotFoundError:
                spare.pop()  # somebody tidied up; the open below creates the file
            except OSError:
                pass  # a disk that is read-only, say: it stays for later
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def done(self, path: bytes) -> None:
        """The proc that wrote to `path` is gone: an empty file goes away."""
        try:
            if os.stat(path, follow_symlinks=False).st_size == 0:
                self._set_aside(path)
        except (OSError, ValueError):  # it has gone by itself, or never came to be
            pass

    def close(self) -> None:
        """Remove what was set aside."""
        for path in (path for spare in self._spare.values() for path in spare):
            try:
                os.unlink(path)
            except OSError:
                pass

    def _set_aside(self, path: bytes) -> None:
        directory = os.path.dirname(path)
        spare = self._spare.setdefault(directory, [])
        if len(spare) >= _SPARE or not _is_as_new(path):
            os.unlink(path)
            return
        self._made += 1
        name = os.path.join(directory, b"%s%d-%d" % (PREFIX, os.getpid(), self._made))
        os.rename(path, name)
        spare.append(name)


def _is_as_new(path: bytes) -> bool:
    """Whether nobody has the file open, and it is empty, ours alone and has no other name."""
    fd = reserve.with_room(os.open, path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        found = os.fstat(fd)  # under the lease: a writer may have come and gone just before
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:  # somebody has, or the file system has no leases
        return False
    else:
        return found.st_size == 0 and found.st_nlink == 1 and found.st_mode == stat.S_IFREG | 0o600
    finally:
        reserve.close(fd)
