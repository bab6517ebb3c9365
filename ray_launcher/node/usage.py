"""What process trees use: one look at /proc for all procs of a node. For agents; the supervisor does not need it."""

from __future__ import annotations

import os

from ray_launcher.node import proctable
from ray_launcher.node.proctable import Stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Used(Stat):
    """A process with what it has used: CPU time in seconds, that of children it has waited for included; bytes."""

    __slots__ = ("cpu", "memory")

    def __init__(self, pid: int, line: bytes) -> None:
        super().__init__(pid, line)
        fields = line[line.rfind(b")") + 2 :].split(b" ", 22)
        self.cpu = sum(map(int, fields[11:15])) * _TICK
        self.memory = int(fields[21]) * _PAGE


class Tree:
    """The processes of one proc, and what they use together."""

    __slots__ = ("cpu", "memory", "pids")

    def __init__(self) -> None:
        self.pids: list[int] = []  # those that live
        self.cpu = 0.0
        self.memory = 0

    def add(self, member: Used) -> None:
        """One that belongs to it, alive or not waited for yet."""
        self.cpu += member.cpu
        if member.alive:
            self.pids.append(member.pid)
            self.memory += member.memory


class Looks:
    """One look after the other at the procs of one supervisor: whose an orphan is may be known from the look before."""

    def __init__(self) -> None:
        self._sampled: dict[tuple[int, int], str] = {}

    def take(self, supervisor: int, leaders: Mapping[int, str]) -> dict[str, Tree]:
        """By token. leaders: their tokens, by pid. Blocks: 20 ms for a thousand processes.

        As in `kinship`, a tree is its leader and those orphans, adopted by the supervisor, that are its own.
        """
        trees = {token: Tree() for token in leaders.values()}
        sampled: dict[tuple[int, int], str] = {}
        for family in proctable.families(proctable.snapshot_as(Used), supervisor):
            first = family[0]
            token = leaders.get(first.pid) or self._owner(first, leaders, trees)
            if token is not None:
                for member in family:
                    trees[token].add(member)
                    sampled[member.key] = token
        self._sampled = sampled
        return trees

    def _owner(self, orphan: Used, leaders: Mapping[int, str], trees: Mapping[str, Tree]) -> str | None:
        token = leaders.get(orphan.session) or _by_cookie(orphan.pid) or self._sampled.get(orphan.key)
        return token if token in trees else None


def proportional_memory(pids: Iterable[int]) -> int:
    """Bytes (PSS) of these processes; 0 of one that is gone. For small ones: the kernel walks all their pages."""
    return sum(map(_proportional, pids))


def _proportional(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Pss:"))


def _by_cookie(pid: int) -> str | None:
    try:
        cookie = proctable.cookie(pid)
    except proctable.HalfwayError:
        return None
    return None if cookie is None else cookie.rsplit(b"/", 1)[-1].decode(errors="replace")
