"""What supervisors, and the procs of those that are no more, are there on this machine, and how they are ended.

Whether anybody still sees to them is not to be told from here: who asks knows which agents there are.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ray_launcher.node import client, proctable
from ray_launcher.node.mopup import mop_up

#: An agent's name: its session's, the beginning of its node's id, and what makes it its own.
_AGENT = re.compile(r"(.+)-([0-9a-f]{16})-[0-9a-f]{8}")
_MAIN = os.fsencode("ray_launcher/node/main.py")
#: Seconds from SIGTERM to SIGKILL for a supervisor; it ends its procs meanwhile. And for what is left then to be gone.
_GRACE, _KILL = 20.0, 12.0


class Found(NamedTuple):
    """One thing of an agent's: kind is supervisor (or its guard), proc or directory. pid, start: 0 for a directory."""

    agent: str
    kind: str
    pid: int
    start: int
    what: str


class Survey(NamedTuple):
    """Of one machine. machine: tells it, or one of its containers, from others.  nodes: ids of raylets that run there;
    None: there is one that does not say its own.
    """

    machine: str
    nodes: frozenset[str] | None
    found: tuple[Found, ...]


def survey() -> Survey:
    """Look at all processes of this user, and at the directories of supervisors."""
    processes = dict(_processes())
    found = [*_directories(processes.values()), *_of_agents(processes)]
    return Survey(_machine(), _raylets(processes.values()), tuple(sorted(set(found))))


def session_of(agent: str) -> str:
    """The session of an agent of that name."""
    match = _AGENT.fullmatch(agent)
    return match[1] if match else agent


def node_of(agent: str) -> str:
    """The first 16 digits of the id of its node."""
    match = _AGENT.fullmatch(agent)
    return match[2] if match else ""


def end(agents: Iterable[str], directories: Iterable[str]) -> None:
    """End what there is of these agents, which are no more: supervisors with grace, procs, and the directories.

    Blocks for half a minute at most where something does not want to end.
    """
    agents = set(agents)
    _signal(agents, signal.SIGTERM)
    paths = [path for path in map(Path, directories) if path.name in agents]
    deadline = time.monotonic() + _GRACE
    for path in paths:
        client.wait_until_free(path, max(0.0, deadline - time.monotonic()))
    _signal(agents, signal.SIGKILL)
    deadline = time.monotonic() + _KILL
    for path in paths:
        if client.wait_until_free(path, max(0.0, deadline - time.monotonic())):
            client.remove_directory(path)
    for agent in agents:
        session = session_of(agent)
        mop_up(os.fsencode(f"{session}/{agent.removeprefix(session + '-')}/"), max(1.0, deadline - time.monotonic()))


def _signal(agents: set[str], signum: int) -> None:
    """To supervisors; not to their guards, which end with them, and end what they leave."""
    supervisors = {each.pid for each in survey().found if each.kind == "supervisor" and each.agent in agents}
    for pid in supervisors:
        seen = proctable.stat(pid)
        if seen is not None and seen.ppid in supervisors:
            proctable.send(seen, signum)


def _processes() -> Iterator[tuple[int, list[bytes]]]:
    """Of this user, by pid: the words of their command lines. Without ourselves, and those above us."""
    spared, pid = set[int](), os.getpid()
    while pid and (above := proctable.stat(pid)) is not None:
        spared.add(pid)
        pid = above.ppid
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int(path.name) not in spared and path.stat().st_uid == os.geteuid():
                yield int(path.name), (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has gone


def _directories(commands: Iterable[list[bytes]]) -> Iterator[Found]:
    """Where agents of this user have their supervisors, and where the supervisors that run are."""
    parents = {client.runtime_directory("x").parent}
    parents |= {Path(os.fsdecode(place)).parent for words in commands if (place := _place(words))}
    for parent in parents:
        for path in parent.glob("*-*-*"):
            if _AGENT.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield Found(path.name, "directory", 0, 0, str(path))


def _of_agents(processes: dict[int, list[bytes]]) -> Iterator[Found]:
    for pid, words in processes.items():
        place = _place(words)
        agent, kind = (Path(os.fsdecode(place)).name, "supervisor") if place else (_agent_of_proc(pid), "proc")
        seen = proctable.stat(pid)
        if seen is not None and seen.alive and _AGENT.fullmatch(agent):
            command = b" ".join(words).strip().decode(errors="replace")
            yield Found(agent, kind, pid, seen.start, command if kind == "supervisor" else command.split(" ")[0])


def _place(words: list[bytes]) -> bytes:
    """The directory of a supervisor or guard with that command line; b"": it is none."""
    for word, following in itertools.pairwise(words):
        if word.endswith(_MAIN):
            return following
    return b""


def _agent_of_proc(pid: int) -> str:
    try:
        cookie = proctable.cookie(pid) or b""
    except proctable.HalfwayError:
        return ""
    session, _, rest = cookie.decode(errors="replace").partition("/")
    return f"{session}-{rest.partition('/')[0]}"


def _raylets(commands: Iterable[list[bytes]]) -> frozenset[str] | None:
    found = set()
    for words in commands:
        if words[0].endswith(b"/raylet"):
            ids = [word.partition(b"=")[2].decode() for word in words if word.startswith(b"--node_id=")]
            if not ids:
                return None
            found.add(ids[0])
    return frozenset(found)


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()} {Path('/proc/self/ns/mnt').readlink()}"
