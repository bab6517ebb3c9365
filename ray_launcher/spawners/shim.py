"""On a node: how a container ended that did not just exit. `shim.c` becomes this, in the same process.

It finds out what there is to know, has the engine remove what is left, and tells by its exit code, or where that cannot
say it, beside the log of stdout. Standard library only. It still holds the one end of the container's FIFO, see there.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

#: The exit code that says: see what is written beside the log of stdout. All others are the program's own.
SPECIAL = 125
#: Characters of an engine's last words.
_LAST_WORDS = 2000
#: Seconds that an engine gets to answer, or to remove a container.
_PATIENCE = 60.0
#: The lists of a plan, in their order; see `Engine.plan`.
LISTS = ("otherwise", "quiet", "gpus", "run", "image", "look", "remove")


class End(NamedTuple):
    """what: exited, signaled, failed or no-image.  number: the code or the signal."""

    what: str
    number: int = 0
    core_dumped: bool = False
    reason: str = ""


class Status:
    """What `init.c` has told so far."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def end(self) -> End | None:
        """How the program ended, if it is known."""
        lines = self._lines()
        what, about, one, two = lines[-1].split() if lines else ("", "", "0", "0")
        if what in ("exited", "signaled"):
            return End(what, int(one), two == "1")
        if what == "failed":
            return _failed(f"{about}: {os.strerror(int(one))}")
        return _failed("never") if what == "never" else None

    @property
    def has_begun(self) -> bool:
        """Whether the program was started, or anything was tried."""
        return bool(self._lines())

    def _lines(self) -> list[str]:
        return self._path.read_text(encoding="ascii").splitlines()


def end_of(plan: dict[str, list[str]], what: str, number: int, life: int, begin: int) -> End:
    """The end of what `shim.c` began; see there for the arguments."""
    secrets = Path(os.environ["RAY_LAUNCHER_SECRETS"])
    engine = plan["run"][0]
    if what == "box":
        return _failed(f"the container's directory {secrets} cannot be filled: {os.strerror(number)}")
    if what == "run":
        return _failed(f"cannot run {engine!r}: {os.strerror(number)}; install it on this node, or name another engine")
    status = Status(secrets / "box" / "status")
    end = status.end()
    if end is not None:
        return end
    os.write(life, bytes([signal.SIGKILL]))  # the client has gone without its container
    if number == SPECIAL and not status.has_begun and _call(plan["look"]) != 0:
        return End("no-image")
    _call(plan["remove"])
    end = status.end()
    if end is not None or status.has_begun:
        return end or End("signaled", signal.SIGKILL)
    said = _last_words(begin) if not plan["quiet"] else "its words were discarded, as want_stdio=False asks for"
    return _failed(f"{engine} could not start the container (code {number}): {said}")


def unpacked(words: Iterable[str]) -> dict[str, list[str]]:
    """A plan, out of `engine.packed`."""
    at = iter(words)
    return {name: [next(at) for _ in range(int(next(at)))] for name in LISTS}


def _call(command: list[str]) -> int:
    """Its exit code; it is killed when it takes too long."""
    taken = ("RAY_LAUNCHER_SECRETS", "RAY_LAUNCHER_SOCKET")
    environ = {name: value for name, value in os.environ.items() if name not in taken}
    null = subprocess.DEVNULL
    try:
        return subprocess.run(
            command, env=environ, stdin=null, stdout=null, stderr=null, timeout=_PATIENCE, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL


def _last_words(begin: int) -> str:
    with open("/dev/fd/2", "rb") as file:
        file.seek(begin)
        said = file.read()[-_LAST_WORDS:].decode(errors="replace").strip()
    return said or "it did not say why"


def _failed(reason: str) -> End:
    return End("failed", reason=reason)


def _tell(end: End) -> int:
    """Our exit code; what that cannot say is put where `RayProcLauncher.value` finds it."""
    if end.what == "exited" and end.number != SPECIAL:
        return end.number
    log = os.path.realpath("/proc/self/fd/1").removesuffix(".out")
    value = Path(f"{log}.value.part")
    value.write_bytes(b"v" + pickle.dumps(tuple(end)))  # a value, as the answer of a callable has it
    value.rename(f"{log}.value")
    return SPECIAL


def main(what: str, number: str, life: str, begin: str, *plan: str) -> int:
    """Called with what `shim.c` says; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda _signum, _frame: None)  # who tells the whole tree to end tells us, too
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        end = end_of(unpacked(plan), what, int(number), int(life), int(begin))
    except Exception as error:  # noqa: BLE001  # whatever it is, somebody waits for an end
        end = _failed(f"the container's shim failed: {type(error).__name__}: {error}")
    return _tell(end)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
