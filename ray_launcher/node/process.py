"""Start one program as a clean child. Runs in the supervisor, its only caller.

`posix_spawn` rather than fork, save where limits ask for more (see `forked`): glibc makes it a vfork, which copies no
page tables and causes no copy-on-write faults in the supervisor (twice the launch rate, measured), and it tells of a
failed exec by itself. Its price: the supervisor waits for the exec, so a program on a file system that hangs holds up
the launches behind it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat

from ray_launcher.node import forked, reserve
from ray_launcher.node.binding import LimitError
from ray_launcher.node.inputs import Input
from ray_launcher.node.limits import Limits
from ray_launcher.node.logfiles import LogFiles
from ray_launcher.node.spawn import Spawner
from ray_launcher.node.spec import Spec

TYPE_CHECKING = False  # typing's own costs the supervisor a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable

#: What exec uses where the child's environment has no PATH (glibc's default).
DEFAULT_PATH = b"/bin:/usr/bin"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class SetupError(Exception):
    """The program could not be started.

    step: what failed: open, room, input, cwd, limit or exec.  code: the errno.
    reason: why, in words, where the errno does not tell.
    """

    def __init__(self, step: str, code: int, path: bytes, reason: str = "") -> None:
        super().__init__(step, code, path, reason)
        self.step, self.code, self.path, self.reason = step, code, path, reason


def become_subreaper() -> None:
    """Make every orphaned descendant this process's child. Raises OSError."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signum: int) -> None:
    """Have `signum` sent to this process when the thread that forked it ends. Raises OSError."""
    _prctl(_PR_SET_PDEATHSIG, signum)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def own_signals(handler: Callable[[int, object], None], *handled: int) -> None:
    """Handle these signals, block the others, ignore none, whatever was inherited."""
    every = signal.valid_signals()
    for signum in every - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(signum, handler if signum in handled else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, every - set(handled))


class Starter:
    """Starts children. One per supervisor."""

    def __init__(self, files: LogFiles) -> None:
        self._files = files
        self._spawner = Spawner()
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._home = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def start(self, spec: Spec, env: dict[bytes, bytes]) -> tuple[int, int, Input | None]:
        """Start the program, exec'ed, leader of its own session. Raises `SetupError`.

        Returns its pid, where in the file of its stderr its own output begins, and the way to its stdin, if it has one.
        """
        opened: list[int] = []
        given = None
        try:
            stdout = self._output(spec.stdout, opened)
            stderr = self._output(spec.stderr, opened)
            begin = os.lseek(stderr, 0, os.SEEK_END) if spec.stderr else 0
            if opened and not _has_room(opened[-1]):
                raise SetupError("room", errno.ENOSPC, spec.stderr or spec.stdout)
            given = _input(spec, stdout)
            stdio = (self._null, stdout, stderr) if given is None else given.stdio(stdout, stderr)
            pid = self._spawn(spec, env, stdio)
        except SetupError:
            if given is not None:
                given.close()
            raise
        finally:
            for fd in opened:
                os.close(fd)
        if given is not None:
            given.started()
        return pid, begin, given

    def _output(self, path: bytes, opened: list[int]) -> int:
        if not path:
            return self._null
        try:
            fd = self._files.open(path)
        except OSError as error:
            raise SetupError("open", error.errno or 0, path) from None
        except ValueError:  # a NUL
            raise SetupError("open", errno.EINVAL, path) from None
        opened.append(fd)
        return fd

    def _spawn(self, spec: Spec, env: dict[bytes, bytes], stdio: tuple[int, int, int]) -> int:
        if spec.cwd:
            _enter(spec.cwd)
        try:
            path = find_program(spec.program, env)
            limits, terminal = spec.limits or Limits(), spec.stdin.startswith(b"terminal")
            if limits.before_exec or terminal:
                return forked.start(path, spec.argv, env, stdio, limits, terminal=terminal)
            return self._spawner.start(path, spec.argv, env, stdio)
        except LimitError as error:
            raise SetupError("limit", 0, spec.program, str(error)) from None
        except OSError as error:
            raise SetupError("exec", error.errno or 0, os.fsencode(error.filename or spec.program)) from None
        except ValueError:  # a NUL
            raise SetupError("exec", errno.EINVAL, spec.program) from None
        except MemoryError:  # before the spawn, which allocates outside of Python
            raise SetupError("exec", errno.ENOMEM, spec.program) from None
        finally:
            if spec.cwd:
                os.fchdir(self._home)


def _input(spec: Spec, log: int) -> Input | None:
    try:
        return Input(spec.stdin, log) if spec.stdin else None
    except OSError as error:
        raise SetupError("input", error.errno or 0, spec.stdin) from None


def find_program(program: bytes, env: dict[bytes, bytes]) -> bytes:
    """Where execvp would find `program`: as it stands with a slash, else on the PATH of `env`. Raises OSError."""
    if b"/" in program:
        return program
    denied = b""
    for directory in env.get(b"PATH", DEFAULT_PATH).split(b":"):
        candidate = os.path.join(directory or b".", program)
        try:
            mode = os.stat(candidate).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode) and os.access(candidate, os.X_OK):
            return candidate
        denied = denied or candidate
    code = errno.EACCES if denied else errno.ENOENT
    raise OSError(code, os.strerror(code), denied or program)


def environment(spec: Spec, base: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The child's whole environment. Raises `SetupError` where there is no memory for it."""
    try:
        return reserve.with_room(spec.environment, base)
    except MemoryError:
        raise SetupError("exec", errno.ENOMEM, spec.program) from None


def _has_room(fd: int) -> bool:
    """Whether this user can write one more block to the disk of an open file, as far as the disk tells."""
    disk = os.fstatvfs(fd)
    free = disk.f_bavail if os.geteuid() else disk.f_bfree  # some blocks are kept for root
    return free > 0 or disk.f_blocks == 0


def _enter(cwd: bytes) -> None:
    try:
        os.chdir(cwd)
    except OSError as error:
        raise SetupError("cwd", error.errno or 0, cwd) from None
    except ValueError:  # a NUL
        raise SetupError("cwd", errno.EINVAL, cwd) from None
