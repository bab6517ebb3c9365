"""Who descends from whom, read from /proc: the facts that tree-wide signals are decided on."""

from __future__ import annotations

import errno
import os
import signal

from ray_launcher.node import reserve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeVar

    _Stat = TypeVar("_Stat", bound="Stat")

COOKIE = b"RAY_LAUNCHER_ID="


class Stat:
    """One line of /proc/PID/stat. `start` (clock ticks since boot) tells a process from a later one with its pid.

    `alive` is False for a zombie, which no signal reaches and which needs no more than reaping. One whose first
    thread has ended shows as a zombie too, but others of its threads still run.
    """

    __slots__ = ("alive", "group", "pid", "ppid", "session", "start")

    def __init__(self, pid: int, line: bytes) -> None:
        # The command name, in parentheses, may hold spaces and parentheses of its own.
        fields = line[line.rfind(b")") + 2 :].split(b" ", 20)
        self.pid = pid
        self.alive = fields[0] not in b"ZX" or int(fields[17]) > 1
        self.ppid, self.group, self.session = int(fields[1]), int(fields[2]), int(fields[3])
        self.start = int(fields[19])

    @property
    def key(self) -> tuple[int, int]:
        """What no other process has."""
        return self.pid, self.start


def stat(pid: int) -> Stat | None:
    """Read one process; None when it is gone."""
    line = _read(f"/proc/{pid}/stat")
    return Stat(pid, line) if line else None


def newest() -> bytes:
    """Stands for the last process or thread that was started: the same one as before, and there have been no others."""
    return (_read("/proc/loadavg") or b"").rpartition(b" ")[2]


def check() -> None:
    """Raise OSError where /proc does not tell who a process's children are: no tree could be killed there."""
    if _read(f"/proc/self/task/{os.getpid()}/children") is None:
        raise OSError("/proc is not mounted or lacks the children files (kernel option CONFIG_PROC_CHILDREN)")


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


def tree(pid: int) -> list[Stat]:
    """`pid` itself and all below it, zombies left out save `pid`; [] when it is gone."""
    root = stat(pid)
    if root is None:
        return []
    below = (stat(member) for member in descendants(pid))
    return [root, *(found for found in below if found is not None and found.alive)]


def snapshot() -> dict[int, Stat]:
    """Every process on the machine that this user can see."""
    return snapshot_as(Stat)


def snapshot_as(read: Callable[[int, bytes], _Stat]) -> dict[int, _Stat]:
    """The same, each read as such: pid, and its line of /proc."""
    lines = ((int(name), _read(f"/proc/{name}/stat")) for name in _names("/proc") if name.isdigit())
    return {pid: read(pid, line) for pid, line in lines if line}


def families(table: Mapping[int, _Stat], root: int) -> Iterator[list[_Stat]]:
    """Of each child of `root` in a snapshot: the child, and all below it."""
    below: dict[int, list[_Stat]] = {}
    for stat in table.values():
        below.setdefault(stat.ppid, []).append(stat)
    for child in below.get(root, ()):
        family = [child]
        for member in family:  # grows while it is walked
            family.extend(below.get(member.pid, ()))
        yield family


class HalfwayError(Exception):
    """The process is within an exec: it has its new memory, and no arguments or environment in it yet. Or it exits."""


def cookie(pid: int) -> bytes | None:
    """The launch cookie in the environment that `pid` was exec'ed with; None when it has none or hides it.

    Raises `HalfwayError` when that cannot be told at this moment.
    """
    data = _memory(pid, "environ")
    if data is None:
        if _has_no_memory(pid):
            raise HalfwayError
        return None
    if not data and _memory(pid, "cmdline") == b"":
        raise HalfwayError
    at = (b"\0" + data).find(b"\0" + COOKIE)
    return None if at < 0 else data[at + len(COOKIE) :].split(b"\0", 1)[0]


def send(seen: Stat, signum: int) -> None:
    """Signal the very process that was `seen`, never a later one with its pid; nothing when it is gone."""
    try:
        fd = reserve.with_room(os.pidfd_open, seen.pid)
    except OSError:
        return
    try:
        now = stat(seen.pid)
        if now is not None and now.start == seen.start:
            signal.pidfd_send_signal(fd, signum)
    except OSError:
        pass
    finally:
        reserve.close(fd)


def _memory(pid: int, name: str) -> bytes | None:
    """What a process keeps in its own memory. Its first thread, where it has ended, has none, but others show it."""
    data = _read(f"/proc/{pid}/{name}")
    if data:
        return data
    others = (_read(f"/proc/{pid}/task/{thread}/{name}") for thread in _threads(pid))
    return next(filter(None, others), data)


def _has_no_memory(pid: int) -> bool:
    """Whether it is exiting: older kernels say so with an empty environment, newer ones (6.18) with ESRCH."""
    try:
        reserve.close(reserve.with_room(os.open, f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.ESRCH
    return True  # it was, a moment ago


def _threads(pid: int) -> list[str]:
    try:
        return _names(f"/proc/{pid}/task")
    except OSError:
        return []


def _names(directory: str) -> list[str]:
    try:
        return reserve.with_room(os.listdir, directory)
    finally:
        reserve.restore()


def _read(path: str) -> bytes | None:
    try:
        fd = reserve.with_room(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
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
        reserve.close(fd)
