"""Who descends from whom, read from /proc: the facts that tree-wide signals are decided on."""

from __future__ import annotations

import os
import signal

COOKIE = b"RAY_LAUNCHER_ID="


class Stat:
    """One line of /proc/PID/stat. `start` (clock ticks since boot) tells a process from a later one with its pid."""

    __slots__ = ("group", "pid", "ppid", "session", "start", "state")

    def __init__(self, pid: int, state: str, ppid: int, group: int, session: int, start: int) -> None:
        self.pid, self.state, self.ppid = pid, state, ppid
        self.group, self.session, self.start = group, session, start

    @property
    def alive(self) -> bool:
        """False for a zombie, which no signal reaches and which needs no more than reaping."""
        return self.state not in "ZX"


def stat(pid: int) -> Stat | None:
    """Read one process; None when it is gone."""
    data = _read(f"/proc/{pid}/stat")
    if data is None:
        return None
    # The command name, in parentheses, may hold spaces and parentheses of its own.
    fields = data[data.rfind(b")") + 2 :].split(b" ", 20)
    return Stat(pid, fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def children(pid: int) -> list[int]:
    """The direct children of every thread of `pid`, zombies among them; [] when it is gone."""
    found: list[int] = []
    for task in _threads(pid):
        data = _read(f"/proc/{pid}/task/{task}/children")
        if data:
            found.extend(map(int, data.split()))
    return found


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, parents before children. A forking tree changes while it is read: read it again."""
    found = children(pid)
    for child in found:  # grows while it is walked
        found.extend(children(child))
    return found


def snapshot() -> dict[int, Stat]:
    """Every process on the machine that this user can see."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return {pid: found for pid in pids if (found := stat(pid)) is not None}


def cookie(pid: int) -> bytes | None:
    """The launch cookie in the environment that `pid` was exec'ed with; None when it has none or hides it."""
    data = _read(f"/proc/{pid}/environ")
    if data is None:
        return None
    at = (b"\0" + data).find(b"\0" + COOKIE)
    return None if at < 0 else data[at + len(COOKIE) :].split(b"\0", 1)[0]


def send(seen: Stat, signum: int) -> None:
    """Signal the very process that was `seen`, never a later one with its pid; nothing when it is gone."""
    try:
        fd = os.pidfd_open(seen.pid)
    except OSError:
        return
    try:
        now = stat(seen.pid)
        if now is not None and now.start == seen.start:
            signal.pidfd_send_signal(fd, signum)
    except OSError:
        pass
    finally:
        os.close(fd)


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def _read(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(fd)
