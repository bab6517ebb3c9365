"""A small disk of a test's own, which can be made full, be robbed of its inodes, or become read-only, and back."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

Pressure = Callable[["SmallDisk"], AbstractContextManager[None]]
#: Bytes written at once: first much, in the end what is left.
_BLOCKS = (1 << 20, 1 << 12)


@contextlib.contextmanager
def small_disk(path: Path, *, megabytes: int = 16, inodes: int = 400) -> Iterator[SmallDisk]:
    """A tmpfs at `path`, which is created; skips the test where this process may not mount one."""
    path.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    options = f"size={megabytes}m,nr_inodes={inodes},mode=0755"
    done = _run("mount", "-t", "tmpfs", "-o", options, "none", str(path))
    if done.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        _run("umount", "-l", str(path))  # something of Ray's may still have a file open on it


class SmallDisk:
    """A mounted one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """No byte can be written meanwhile; files can be created."""
        fill = self.path / "fill"
        try:
            with open(fill, "wb", buffering=0) as file, _kept_up(lambda: _fill_up(file)):
                assert os.statvfs(self.path).f_bfree == 0, os.statvfs(self.path)
                yield
        finally:
            fill.unlink()

    @contextlib.contextmanager
    def without_inodes(self, spared: int = 0) -> Iterator[None]:
        """No file can be created meanwhile, save so many."""
        fillers: list[Path] = []

        def fill() -> None:
            with contextlib.suppress(OSError):
                while os.statvfs(self.path).f_ffree > spared:
                    filler = self.path / f"fill{len(fillers)}"
                    filler.touch()
                    fillers.append(filler)

        try:
            with _kept_up(fill):
                assert os.statvfs(self.path).f_ffree <= spared, os.statvfs(self.path)
                yield
        finally:
            for filler in fillers:
                filler.unlink()

    @contextlib.contextmanager
    def read_only(self, below: str = ".") -> Iterator[None]:
        """Nothing can be created, written or renamed in that directory meanwhile, save what is open already."""
        place = str(self.path / below)
        subprocess.run(["mount", "--bind", place, place], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
            yield
        finally:
            subprocess.run(["umount", "-l", place], check=True)


_FREE = "free space or inodes on the disk of Ray's log directory"
#: How to press a disk so that it takes no more log files, the error that then comes, and the remedy that is told.
PRESSURES = [
    pytest.param(SmallDisk.full, errno.ENOSPC, _FREE, id="full"),
    pytest.param(SmallDisk.without_inodes, errno.ENOSPC, _FREE, id="no inodes"),
    pytest.param(SmallDisk.read_only, errno.EROFS, "make the disk of Ray's log directory writable", id="read-only"),
]


@contextlib.contextmanager
def _kept_up(fill: Callable[[], None]) -> Iterator[None]:
    """`fill`, and again and again: others free something at any time, such as a file that was unlinked while open."""
    over = threading.Event()

    def keep_up() -> None:
        while not over.wait(0.001):
            fill()

    fill()
    keeper = threading.Thread(target=keep_up)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()


def _fill_up(file: io.RawIOBase) -> None:
    for size in _BLOCKS:
        with contextlib.suppress(OSError):
            while file.write(b"\0" * size) == size:
                pass


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
