"""What the chaos run reads of processes, and how it kills one: never by a number that may be another's by now."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process at one moment; `started` (ticks since boot) makes its number unique."""

    pid: int
    parent: int
    started: int
    command: str

    @property
    def alive(self) -> bool:
        """Whether it is the one with this number still, and no zombie."""
        return is_alive(self.pid, self.started)

    def send(self, signum: int) -> bool:
        """Send a signal to it and nobody else; False when it has gone."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if not self.alive:
                return False
            signal.pidfd_send_signal(fd, signum)
        except ProcessLookupError:
            return False
        else:
            return True
        finally:
            os.close(fd)


def processes() -> Iterator[Process]:
    """All that are alive."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (found := process(int(path.name))):
            yield found


def process(pid: int) -> Process | None:
    """The one with this number, if there is one and it is no zombie."""
    fields = _stat(pid)
    if fields is None or fields[0] == "Z":
        return None
    command = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(pid, int(fields[1]), int(fields[19]), command)


def is_alive(pid: int, started: int) -> bool:
    """Whether this very process exists, and is no zombie."""
    fields = _stat(pid)
    return fields is not None and fields[0] not in "ZX" and int(fields[19]) == started


def environ(pid: int) -> list[str]:
    """Its variables as it was started with them."""
    return _read(pid, "environ").decode(errors="replace").split("\0")


def _stat(pid: int) -> list[str] | None:
    text = _read(pid, "stat").decode(errors="replace")
    return text.rpartition(")")[2].split() or None


def _read(pid: int, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""
