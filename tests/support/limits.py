"""Limits put on a process while it runs, and taken off again: descriptors, address space, processes, memory."""

from __future__ import annotations

import contextlib
import os
import resource
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

_CGROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """The process can open nothing meanwhile."""
    used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    lowest = min(set(range(len(used) + 1)) - used)
    with _limited(pid, resource.RLIMIT_NOFILE, lowest):
        yield


@contextlib.contextmanager
def without_memory(pid: int) -> Iterator[None]:
    """The process can map no more memory meanwhile: how a shortage shows where the kernel does not overcommit."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    with _limited(pid, resource.RLIMIT_AS, pages * os.sysconf("SC_PAGE_SIZE")):
        yield


@contextlib.contextmanager
def _limited(pid: int, limit: int, value: int) -> Iterator[None]:
    before = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (value, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, limit, before)


class Cgroup:
    """Processes with limits of their own."""

    def __init__(self, path: Path, version: int) -> None:
        self.path, self.version = path, version

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def tasks(self) -> int:
        return int((self.path / "pids.current").read_text())

    def limit_tasks(self, number: int | None) -> None:
        """Threads and processes, those that there are included; None: any number."""
        (self.path / "pids.max").write_text("max" if number is None else str(number))

    def limit_memory(self, number: int) -> None:
        """Bytes; whoever takes the most is killed by the kernel when they run out."""
        name = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        (self.path / name).write_text(str(number))

    def killed_for_memory(self) -> int:
        """Processes that the kernel has killed since they ran out of it."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return int(dict(line.split() for line in (self.path / name).read_text().splitlines())["oom_kill"])


@contextlib.contextmanager
def cgroup(controller: str) -> Iterator[Cgroup]:
    """A group for `controller`: "pids" or "memory". Skips the test where this process may not make one."""
    parent, version = (_CGROUPS / controller, 1) if (_CGROUPS / controller).is_dir() else (_CGROUPS, 2)
    path = parent / f"ray-launcher-test-{uuid.uuid4().hex[:8]}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"needs a cgroup of its own: {error}")
    try:
        if not (path / ("pids.max" if controller == "pids" else "cgroup.procs")).exists():
            pytest.skip(f"there is no {controller} controller for cgroups here")
        yield Cgroup(path, version)
    finally:
        for pid in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (parent / "cgroup.procs").write_text(pid)
        path.rmdir()
