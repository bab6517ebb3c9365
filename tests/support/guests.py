"""Virtual machines in tests: what they are booted with, and what can be seen of them from outside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

#: A kernel for guests, where there is none in /boot.
KERNEL = "RAY_LAUNCHER_VM_KERNEL"
#: Seconds: a guest boots in two, and in thirty where others need the CPUs.
DEADLINE = 120.0


def kernel() -> str | None:
    """A file; None: there is none."""
    newest = max(Path("/boot").glob("vmlinuz-*"), key=os.path.getmtime, default=None)
    return os.environ.get(KERNEL) or (None if newest is None else str(newest))


def why_none() -> str | None:
    """Why no guest can be booted on this machine; None: one can."""
    for program, package in (("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static")):
        if shutil.which(program) is None:
            return f"there is no {program}: install Debian's {package}"
    if kernel() is None:
        return f"there is no kernel in /boot: install Debian's linux-image-cloud-amd64, or name one in {KERNEL}"
    return None


def consoles() -> Iterator[tuple[int, str]]:
    """Each qemu that runs: its pid, and what its guest's console has shown."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.joinpath("comm").read_text().startswith("qemu-system"):
                yield int(process.name), process.joinpath("fd/2").read_text(errors="replace")
        except OSError:
            continue  # it has just gone


def pids_of(mark: str) -> list[int]:
    """Of the machines whose console has shown this line."""
    return [pid for pid, console in consoles() if mark in console.splitlines()]
