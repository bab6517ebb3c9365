"""What a supervisor keeps back for bad times, so that it can still look at processes, signal, reap and report."""

from __future__ import annotations

import errno
import mmap
import os

TYPE_CHECKING = False  # typing's own costs the supervisor a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    _T = TypeVar("_T")

#: Descriptors needed at once: a pidfd, and a file of the process that it stands for.
_DESCRIPTORS = 2
#: Bytes of address space, never touched and so no memory yet: room for a launch of 3 MiB and its copies; or less.
_ADDRESSES = (16 << 20, 8 << 20, 4 << 20, 2 << 20, 1 << 20)

_descriptors: list[int] = []
_addresses: list[mmap.mmap] = []
_kept: list[bool] = []  # something, once this process keeps a reserve


def keep_back() -> None:
    """Have a reserve from now on. Raises OSError."""
    _kept.append(True)
    _fill()


def with_room(call: Callable[..., _T], *args: object) -> _T:
    """`call(*args)`, once more at the expense of the reserve where there was no descriptor or no memory left for it.

    It may open one descriptor, which must be closed with `close`. Raises what it raises.
    """
    try:
        return call(*args)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE) or not _descriptors:
            raise
        os.close(_descriptors.pop())
    except MemoryError:
        if not _addresses:
            raise
        _addresses.pop().close()
    return call(*args)


def close(fd: int) -> None:
    """Close a descriptor; the reserve comes first for what that sets free."""
    os.close(fd)
    restore()


def restore() -> None:
    """Fill the reserve again, as far as that is possible."""
    if _kept and (not _addresses or len(_descriptors) < _DESCRIPTORS):
        try:
            _fill()
        except OSError:
            pass  # the next time


def _fill() -> None:
    while len(_descriptors) < _DESCRIPTORS:
        _descriptors.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    for size in _ADDRESSES:
        if not _addresses:
            try:
                _addresses.append(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            except OSError:
                pass  # less will do
