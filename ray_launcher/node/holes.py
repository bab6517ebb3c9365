"""The freed beginning of a log file: a hole, so that offsets stay what they are and who writes to it does not notice.

Called by the supervisor, which frees, and by whoever reads: what was freed would read as zeros.
"""

from __future__ import annotations

import ctypes
import errno
import os

#: What can be freed is whole blocks of this size, or of the file system's, if those are larger.
BLOCK = 4096
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def free(fd: int, start: int, end: int) -> None:
    """Give what is between two offsets back to the file system. Raises OSError where that cannot punch holes."""
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate  # os has posix_fallocate only
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, start, end - start) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def first_data(fd: int, offset: int = 0) -> int:
    """Where the first byte at or behind `offset` is that has not been freed; the file's end where there is none.

    Asked after a read, it tells whether that was in time: holes grow from the beginning. Moves the descriptor's own
    offset.
    """
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return max(offset, os.fstat(fd).st_size)
        return offset  # a file system without holes
