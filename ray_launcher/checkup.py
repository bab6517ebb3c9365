"""What is looked at on each node by `ray-launcher doctor`, and the checks: what would bite, and what to do about it.

A check is a function of what was found on a node and of what is ours; it has a name, and a place in `CHECKS`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

#: The oldest Ray that is supported.
OLDEST_RAY = (2, 40)
#: Bytes and inodes free in the log directory, open files and processes, below which it is too little.
_DISK, _INODES, _FILES, _PROCESSES = 1 << 30, 10_000, 4096, 4096
#: Processes that a cgroup has still room for, below which it is too few.
_ROOM = 1000
#: Seconds by which clocks may differ.
_CLOCKS = 1.0


@dataclasses.dataclass(frozen=True)
class NodeFacts:
    """What was found on one node, in a Ray worker there as our agents have. None: there is none, or it cannot be told.

    ray_launcher: None where it cannot be imported.  niceness: of that worker, which was started with
    RAY_worker_niceness=0.  zombies: children of PID 1 that have not been waited for, in two looks.  first: the name of
    PID 1.  authentication: Ray's word.  disk, inodes: free in `log_directory`.  files, processes: soft limits.
    environ_readable: whether /proc/PID/environ of a child is.  lacking: what the kernel or /proc lacks.
    memory_limit, pids_limit, pids: of its cgroup.  ray_memory: bytes that Ray gives away, its object store included.
    clock: seconds by which it is ahead of ours, at least.
    """

    node_id: str
    ip: str
    ray: str
    python: str
    ray_launcher: str | None
    niceness: int
    zombies: int
    first: str
    authentication: str | None
    log_directory: str
    disk: int
    inodes: int | None
    files: int | None
    processes: int | None
    environ_readable: bool
    ptrace_scope: int | None
    hidepid: str | None
    lacking: tuple[str, ...]
    memory_limit: int | None
    pids_limit: int | None
    pids: int | None
    ray_memory: int = 0
    clock: float = 0.0


@dataclasses.dataclass(frozen=True)
class Ours:
    """The versions that this process runs."""

    ray: str
    python: str
    ray_launcher: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that a check has found. wrong: it will bite; else it is good to know."""

    check: str
    node_id: str
    ip: str
    what: str
    remedy: str
    wrong: bool = True


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Of a cluster: what was found on the nodes that answered, and what the checks say."""

    nodes: tuple[NodeFacts, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.wrong for finding in self.findings)


#: What is wrong, and what to do.
_Words: TypeAlias = "tuple[str, str] | None"
Check: TypeAlias = Callable[[NodeFacts, Ours], _Words]


def diagnose(facts: NodeFacts, ours: Ours) -> Iterator[Finding]:
    """What the checks find on a node."""
    for name, check in CHECKS.items():
        words = check(facts, ours)
        if words is not None:
            yield Finding(name, facts.node_id, facts.ip, *words, wrong=name not in NOTES)


def silent(node_id: str, ip: str, why: str) -> Finding:
    """Of a node on which nothing could be looked at."""
    remedy = "see the raylet's and the dashboard agent's logs there; procs cannot be started on it either"
    return Finding("answers", node_id, ip, f"no answer: {why}", remedy)


def _ray_version(facts: NodeFacts, ours: Ours) -> _Words:
    if facts.ray != ours.ray:
        return f"Ray {facts.ray}, but here it is {ours.ray}", "install the same version on all nodes and here"
    number = tuple(int(part) for part in re.findall(r"\d+", facts.ray)[:2])
    if number < OLDEST_RAY:
        return f"Ray {facts.ray}", f"use {'.'.join(map(str, OLDEST_RAY))} or newer"
    return None


def _python_version(facts: NodeFacts, ours: Ours) -> _Words:
    theirs, here = (version.rpartition(".")[0] for version in (facts.python, ours.python))
    if theirs == here:
        return None
    what = f"Python {facts.python}, but here it is {ours.python}"
    return what, "use the same on all nodes and here: callables and options are pickled"


def _launcher_version(facts: NodeFacts, ours: Ours) -> _Words:
    remedy = "install the same version on all nodes and here, or bring it along with a runtime_env"
    if facts.ray_launcher is None:
        return "ray_launcher cannot be imported: no agent can start", remedy
    if facts.ray_launcher != ours.ray_launcher:
        return f"ray_launcher {facts.ray_launcher}, but here it is {ours.ray_launcher}", remedy
    return None


def _niceness(facts: NodeFacts, _: Ours) -> _Words:
    if facts.niceness <= 0:
        return None
    remedy = "set RAY_worker_niceness=0 where `ray start` runs, and run that at nice 0 itself"
    return f"our workers have nice {facts.niceness}, and so have procs: it cannot be undone without a privilege", remedy


def _reaping(facts: NodeFacts, _: Ours) -> _Words:
    if not facts.zombies:
        return None
    what = f"PID 1 ({facts.first}) does not wait for its children: {facts.zombies} zombies; each holds a pid for ever"
    return what, "run the container with an init (docker run --init, tini, shareProcessNamespace)"


def _authentication(facts: NodeFacts, _: Ours) -> _Words:
    if facts.authentication in (None, "token"):
        return None
    what = f"token authentication is {facts.authentication}: whoever reaches Ray's ports can run programs here"
    return what, "start Ray with RAY_AUTH_MODE=token, or keep its ports to hosts that are trusted"


def _disk_space(facts: NodeFacts, _: Ours) -> _Words:
    remedy = "free some, or start Ray with a --temp-dir on a larger disk: procs write their output there"
    if facts.disk < _DISK:
        return f"{facts.disk >> 20} MiB free in {facts.log_directory}", remedy
    if facts.inodes is not None and facts.inodes < _INODES:
        return f"{facts.inodes} inodes free in {facts.log_directory}", remedy
    return None


def _open_files(facts: NodeFacts, _: Ours) -> _Words:
    if facts.files is None or facts.files >= _FILES:
        return None
    return f"no more than {facts.files} open files a process (RLIMIT_NOFILE)", "ulimit -n 65536 where `ray start` runs"


def _process_count(facts: NodeFacts, _: Ours) -> _Words:
    if facts.processes is None or facts.processes >= _PROCESSES:
        return None
    what = f"no more than {facts.processes} processes and threads for this user (RLIMIT_NPROC)"
    return what, "ulimit -u unlimited where `ray start` runs"


def _pids_cgroup(facts: NodeFacts, _: Ours) -> _Words:
    if facts.pids_limit is None or facts.pids is None or facts.pids_limit - facts.pids >= _ROOM:
        return None
    what = f"its cgroup has {facts.pids} of at most {facts.pids_limit} processes and threads"
    return what, "raise pids.max (docker run --pids-limit, TasksMax of the service)"


def _memory_cgroup(facts: NodeFacts, _: Ours) -> _Words:
    if facts.memory_limit is None or facts.memory_limit >= facts.ray_memory:
        return None
    what = f"its cgroup has {facts.memory_limit >> 20} MiB of memory, and Ray gives {facts.ray_memory >> 20} MiB away"
    return what, "raise memory.max, or start Ray with less --memory and --object-store-memory"


def _environ(facts: NodeFacts, _: Ours) -> _Words:
    if facts.environ_readable:
        return None
    limits = f"hidepid={facts.hidepid or '0'}, ptrace_scope={facts.ptrace_scope}"
    what = f"/proc/PID/environ of our own children cannot be read ({limits}): orphans of a proc may be missed"
    return what, "mount /proc with hidepid=0, or run Ray as a user that may read it"


def _kernel(facts: NodeFacts, _: Ours) -> _Words:
    if not facts.lacking:
        return None
    return f"lacks {', '.join(facts.lacking)}: trees of processes cannot be ended", "use Linux 5.4 or newer with /proc"


def _clocks(facts: NodeFacts, _: Ours) -> _Words:
    if abs(facts.clock) <= _CLOCKS:
        return None
    way = "ahead of" if facts.clock > 0 else "behind"
    return (
        f"its clock is {abs(facts.clock):.1f} s {way} ours: times of procs mislead",
        "run an NTP client on every node",
    )


#: By name. To add one: a function, and its name here.
CHECKS: dict[str, Check] = {
    "ray version": _ray_version,
    "python version": _python_version,
    "ray_launcher version": _launcher_version,
    "niceness": _niceness,
    "reaping": _reaping,
    "authentication": _authentication,
    "disk space": _disk_space,
    "open files": _open_files,
    "processes": _process_count,
    "pids cgroup": _pids_cgroup,
    "memory cgroup": _memory_cgroup,
    "environ": _environ,
    "kernel": _kernel,
    "clocks": _clocks,
}
#: Those that tell what is good to know.
NOTES = {"authentication"}
