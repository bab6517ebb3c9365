"""Why a program could not be started, in words that name the thing and what to do about it."""

from __future__ import annotations

import errno
import os
import stat

from ray_launcher.node.process import DEFAULT_PATH, SetupError
from ray_launcher.node.spec import Spec

#: A shell's words for the two kinds of failed exec, reported as the exit code beside the reason.
NOT_EXECUTABLE, NOT_FOUND = 126, 127


def explain(error: SetupError, spec: Spec, env: dict[bytes, bytes]) -> tuple[str, int | None]:
    """Return (reason, exit code): 127 not found, 126 not executable, None where no program was tried."""
    if error.step == "limit":
        return error.reason, None
    if error.step in _STEPS:
        return _STEPS[error.step](error), None
    if error.code in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return _forking(error, spec), None
    return _exec(error, spec, env)


def _cwd(error: SetupError) -> str:
    path = os.fsdecode(error.path)
    if error.code == errno.ENOENT:
        return f"cwd {path!r} does not exist on the node: create it there or launch with another cwd"
    if error.code == errno.ENOTDIR:
        return f"cwd {path!r} is not a directory: launch with a directory as cwd"
    return f"cannot enter cwd {path!r}: {os.strerror(error.code)}"


def _opening(error: SetupError) -> str:
    remedy = "; Ray's log directory is gone: create it again" if error.code == errno.ENOENT else relief(error.code)
    return f"cannot create the log file {os.fsdecode(error.path)!r}: {os.strerror(error.code)}{remedy}"


def _writing(error: SetupError) -> str:
    text = f"cannot write to the log file {os.fsdecode(error.path)!r}: {os.strerror(error.code)}{relief(error.code)}"
    return f"{text}, or launch with want_stdio=False"


def _input(error: SetupError) -> str:
    what = "pipe" if error.path == b"pipe" else "terminal"
    return f"cannot open a {what} for its stdin: {os.strerror(error.code)}{relief(error.code)}"


_STEPS = {"cwd": _cwd, "open": _opening, "room": _writing, "input": _input}


def _forking(error: SetupError, spec: Spec) -> str:
    return f"cannot fork for {os.fsdecode(spec.program)!r}: {os.strerror(error.code)}{relief(error.code)}"


def relief(code: int, place: str = "Ray's log directory") -> str:
    """What to do about an errno, to be put behind its text; "" for one that is not about a shortage."""
    return {
        errno.EMFILE: "; raise the limit of open files (ulimit -n) that Ray's processes start with",
        errno.ENFILE: "; the node's table of open files is full (fs.file-max)",
        errno.EAGAIN: "; the node's limit of processes is reached (ulimit -u, pids cgroup): end some, or raise it",
        errno.ENOMEM: "; the node is out of memory",
        errno.ENOSPC: f"; free space or inodes on the disk of {place}",
        errno.EDQUOT: f"; free space in the quota of {place}",
        errno.EROFS: f"; make the disk of {place} writable, which the kernel may have stopped after an error of it",
        errno.EACCES: f"; let the user that runs Ray write to {place}",
    }.get(code, "")


def _exec(error: SetupError, spec: Spec, env: dict[bytes, bytes]) -> tuple[str, int]:
    program, path = os.fsdecode(spec.program), _resolved(error.path, spec)
    shown = program if error.path == spec.program else f"{program} ({os.fsdecode(error.path)})"
    if error.code in (errno.ENOENT, errno.ENOTDIR):
        return _missing(shown, path, spec, env)
    if error.code == errno.EACCES:
        return _denied(shown, path), NOT_EXECUTABLE
    if error.code == errno.ENOEXEC:
        return f"{shown}: wrong format: neither a binary for this machine nor a script with a #! line", NOT_EXECUTABLE
    if error.code == errno.ETXTBSY:
        return f"{shown}: text file busy: somebody has it open for writing; launch it once it is closed", NOT_EXECUTABLE
    if error.code == errno.E2BIG:
        return f"{shown}: arguments and environment are too long for exec (E2BIG): pass them in a file", NOT_EXECUTABLE
    return f"{shown}: cannot be executed: {os.strerror(error.code)}", NOT_EXECUTABLE


def _missing(shown: str, path: bytes, spec: Spec, env: dict[bytes, bytes]) -> tuple[str, int]:
    if b"/" in path and os.path.exists(path):
        return f"{shown}: exists, but the interpreter that it names (its #! line or loader) does not", NOT_EXECUTABLE
    if b"/" not in spec.program:
        unset = "" if b"PATH" in env else f", which is not set, so {os.fsdecode(DEFAULT_PATH)} was searched"
        return f"{shown}: program not found on the child's PATH{unset}: install it there, or give a path", NOT_FOUND
    base = f" (relative to cwd {os.fsdecode(spec.cwd or os.getcwdb())!r})" if not os.path.isabs(spec.program) else ""
    return f"{shown}: program not found on the node{base}", NOT_FOUND


def _denied(shown: str, path: bytes) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return f"{shown}: permission denied"
    if stat.S_ISDIR(mode):
        return f"{shown}: is a directory, not a program"
    if not mode & 0o111:
        return f"{shown}: is not executable: chmod +x it, or launch its interpreter with it as an argument"
    return f"{shown}: permission denied (its directories, its interpreter, or a noexec mount)"


def _resolved(path: bytes, spec: Spec) -> bytes:
    return os.path.join(spec.cwd, path) if b"/" in path and spec.cwd else path
