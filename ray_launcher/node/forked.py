"""Start a program by fork, for a launch that must change its process before the exec: posix_spawn has no word for that.

Limits are set by the child on itself, so the supervisor never has them, not for a moment: most of them it could not
take back without a privilege. Nor can posix_spawn make a terminal the controlling one. A launch takes three times as
long as by posix_spawn (measured).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import termios

from ray_launcher.node import binding
from ray_launcher.node.binding import LimitError
from ray_launcher.node.spawn import strings

TYPE_CHECKING = False  # typing's own costs the supervisor a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ray_launcher.node.limits import Limits

_REFUSED, _ERRNO = b"L", b"E"
_NO_MEMORY = b"%s%d" % (_ERRNO, errno.ENOMEM)
#: All signals, none, and room for the C library's sigset_t. Its own function: Python's makes a hundred objects of one.
_ALL, _NONE = b"\xff" * 128, b"\0" * 128

_libc = ctypes.CDLL(None, use_errno=True)


def start(
    path: bytes,
    argv: list[bytes],
    env: dict[bytes, bytes],
    stdio: Iterable[int],
    limits: Limits,
    *,
    terminal: bool = False,
) -> int:
    """Exec `path` as `spawn.Spawner` does, within `limits`; returns its pid.

    terminal: descriptor 0 is one, and is to be the controlling one.

    Raises OSError and ValueError as that does, and `LimitError`.
    """
    if b"\0" in path:
        raise ValueError("embedded null byte")
    command = path, strings(argv), strings([name + b"=" + value for name, value in env.items()])
    outcome, tell = os.pipe()
    try:
        try:
            pid = _fork(tell, command, stdio, limits, terminal)
        finally:
            os.close(tell)
        said = _read(outcome)
    finally:
        os.close(outcome)
    if said:
        os.waitpid(pid, 0)
        if said.startswith(_REFUSED):
            raise LimitError(os.fsdecode(said[1:]))
        raise OSError(int(said[1:]), os.strerror(int(said[1:])), path)
    return pid


def _fork(tell: int, command: _Command, stdio: Iterable[int], limits: Limits, terminal: bool) -> int:
    """`tell` is closed by the exec; until then the child writes there why there will be none."""
    before = ctypes.create_string_buffer(128)
    _libc.sigprocmask(signal.SIG_SETMASK, _ALL, before)  # until the supervisor's handlers are gone
    try:
        pid = os.fork()
        if pid == 0:
            _become(tell, command, stdio, limits, terminal)
        return pid
    finally:
        _libc.sigprocmask(signal.SIG_SETMASK, before, None)


def _become(tell: int, command: _Command, stdio: Iterable[int], limits: Limits, terminal: bool) -> None:
    """The child's whole life. Never returns."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)  # the others are so already, see `process.own_signals`
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        if terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        binding.bind(limits.bind)
        _set_umask_and_nice(limits)
        _libc.sigprocmask(signal.SIG_SETMASK, _NONE, None)
        _set_rlimits(limits.rlimits)  # last: there may be no memory or descriptor afterwards
        _libc.execve(*command)
        os.write(tell, b"%s%d" % (_ERRNO, ctypes.get_errno()))
    except LimitError as error:
        os.write(tell, _REFUSED + os.fsencode(str(error)))
    except MemoryError:
        os.write(tell, _NO_MEMORY)
    except BaseException as error:  # noqa: BLE001  # nothing may get into the supervisor that this is a copy of
        os.write(tell, _REFUSED + os.fsencode(f"cannot set the limits: {error!r}"))
    finally:
        os._exit(127)


def _set_umask_and_nice(limits: Limits) -> None:
    if limits.umask is not None:
        os.umask(limits.umask)
    if limits.nice is not None:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, limits.nice)
        except OSError as error:
            here = os.getpriority(os.PRIO_PROCESS, 0)
            way_out = f"give {here} or more, or raise RLIMIT_NICE where Ray is started"
            text = f"{os.strerror(error.errno or 0)}: procs start at {here} here, less takes CAP_SYS_NICE: {way_out}"
            raise LimitError(f"LaunchOptions.nice={limits.nice}: {text}") from None


def _set_rlimits(rlimits: dict[str, tuple[int, int]]) -> None:
    for name, wanted in rlimits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}")
        before = resource.getrlimit(number)
        try:
            resource.setrlimit(number, wanted)
        except (OSError, ValueError) as error:
            raise LimitError(_refusal(name, wanted, before[1], error)) from None


def _refusal(name: str, wanted: tuple[int, int], hard: int, error: Exception) -> str:
    shown = ":".join("unlimited" if limit == -1 else str(limit) for limit in wanted)
    ceiling = "unlimited" if hard == -1 else str(hard)
    kernels = " and the kernel's own is fs.nr_open" if name == "nofile" else ""
    way_out = "ask for less, or raise it where Ray is started (CAP_SYS_RESOURCE)"
    return f"LaunchOptions.rlimits[{name!r}]={shown}: {error}: the hard limit is {ceiling} here{kernels}: {way_out}"


def _read(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 12):
        parts.append(part)
    return b"".join(parts)


if TYPE_CHECKING:
    _Strings = ctypes.Array[ctypes.c_char_p]
    _Command = tuple[bytes, _Strings, _Strings]
