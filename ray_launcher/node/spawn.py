"""The C library's posix_spawn, called by way of ctypes because os.posix_spawn cannot say everything.

glibc leaves its two internal signals (32 and 33) ignored in the child unless they are among those to reset, and
Python's sets of signals cannot hold them. Naming all signals for the reset is faster, too: the library need not ask
for the state of each first.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_SETSIGDEF, _SETSIGMASK, _SETSID = 0x04, 0x08, 0x80
#: More bytes than any C library's posix_spawnattr_t, posix_spawn_file_actions_t (336 and 80 in glibc) or sigset_t.
_ROOM = 1024


class Spawner:
    """Starts programs as leaders of their own session, with no signal blocked or ignored."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        self._attributes = ctypes.create_string_buffer(_ROOM)
        self._actions = ctypes.create_string_buffer(_ROOM)
        _check(libc.posix_spawnattr_init(self._attributes))
        _check(libc.posix_spawnattr_setflags(self._attributes, ctypes.c_short(_SETSIGDEF | _SETSIGMASK | _SETSID)))
        _check(libc.posix_spawnattr_setsigdefault(self._attributes, b"\xff" * _ROOM))
        _check(libc.posix_spawnattr_setsigmask(self._attributes, b"\0" * _ROOM))
        self._spawn = libc.posix_spawn
        self._spawn.argtypes = (ctypes.c_void_p, ctypes.c_char_p, *[ctypes.c_void_p] * 4)
        self._init_actions = libc.posix_spawn_file_actions_init
        self._add_dup2 = libc.posix_spawn_file_actions_adddup2
        self._destroy_actions = libc.posix_spawn_file_actions_destroy

    def start(self, path: bytes, argv: list[bytes], env: dict[bytes, bytes], stdio: Iterable[int]) -> int:
        """Exec `path` with these as its descriptors 0, 1 and 2; returns its pid. Raises OSError and ValueError."""
        pid = ctypes.c_int()
        arguments, environ = strings(argv), strings([name + b"=" + value for name, value in env.items()])
        if b"\0" in path:
            raise ValueError("embedded null byte")
        _check(self._init_actions(self._actions))
        try:
            for target, fd in enumerate(stdio):
                _check(self._add_dup2(self._actions, fd, target))
            _check(self._spawn(ctypes.byref(pid), path, self._actions, self._attributes, arguments, environ), path)
        finally:
            self._destroy_actions(self._actions)
        return pid.value


def strings(items: list[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    """A null-terminated array of C strings. Raises ValueError for a NUL in one."""
    if b"\0" in b"".join(items):  # it would end the string early
        raise ValueError("embedded null byte")
    return (ctypes.c_char_p * (len(items) + 1))(*items)


def _check(code: int, path: bytes = b"") -> None:
    if code:
        raise OSError(code, os.strerror(code), path)
