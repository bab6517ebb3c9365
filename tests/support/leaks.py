"""What a test may leave behind, and the check after each test that it left nothing.

Only what appeared during the test counts, and only what belongs to this test run: its temporary directory, which
`isolate` makes, shows in the command lines of supervisors and in the environment of procs. Other runs on the same
machine are not looked at.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.experimental.internal_kv import _internal_kv_list

NAMESPACE = "ray_launcher"
#: Seconds that things which are going get to be gone: agents may take that long to notice the end of their driver.
DEADLINE = 20.0


@contextmanager
def isolate() -> Iterator[Path]:
    """A temporary directory for this test run and everything it starts, Ray included."""
    saved = {name: os.environ.get(name) for name in ("TMPDIR", "RAY_TMPDIR", "PYTEST_DEBUG_TEMPROOT")}
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # tmp_path stays where it was
    root = Path(
        tempfile.mkdtemp(prefix="rlt-", dir=os.environ["PYTEST_DEBUG_TEMPROOT"])
    )  # short: Ray makes sockets deep below, and a path has 107 bytes
    os.environ["TMPDIR"], tempfile.tempdir = str(root), None
    os.environ.pop("RAY_TMPDIR", None)
    try:
        yield root
    finally:
        for name, value in saved.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        tempfile.tempdir = None
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def ray_starts() -> Iterator[None]:
    """Around what starts Ray: where the dashboard's port is taken it leaves a socket to the garbage collector, whose
    warning would fail whichever test runs then.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


class Traces:
    """What there was at one moment; `new` tells what has come since and is still there.

    roots: further directories of this test run, where tests may have supervisors of their own.
    """

    def __init__(self, *roots: Path) -> None:
        self._roots = tuple(os.fsencode(f"{path}/") for path in (tempfile.gettempdir(), *roots))
        self._pids = set(_pids())
        self._things = set(_things())

    def new(self) -> list[str]:
        """In words, one line each."""
        processes = [words for pid in sorted(set(_pids()) - self._pids) if (words := self._describe(pid))]
        return processes + sorted(set(_things()) - self._things)

    def wait_for_none_new(self, deadline: float | None = None) -> list[str]:
        """What is still there after `deadline` seconds (None: the usual); [] as soon as there is nothing."""
        give_up = time.monotonic() + (DEADLINE if deadline is None else deadline)
        while (left := self.new()) and time.monotonic() < give_up:
            time.sleep(0.05)
        return left

    def _describe(self, pid: int) -> str | None:
        """The process in words if it is ours: a supervisor or guard, a proc of theirs, a zombie child of the tests."""
        state, parent = _state(pid)
        if state == "Z":
            return f"zombie {pid}, a child of the tests' process" if parent == os.getpid() else None
        command = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
        if self._is_supervisor(pid):
            return f"supervisor or guard {pid}: {command}"
        return f"proc {pid}: {command}" if self._is_proc(pid) else None

    def _is_supervisor(self, pid: int) -> bool:
        words = _read(pid, "cmdline").split(b"\0")
        executable = any(word.endswith(b"ray_launcher/node/main.py") for word in words)
        return executable and any(word.startswith(self._roots) for word in words)

    def _is_proc(self, pid: int) -> bool:
        environ = _read(pid, "environ").split(b"\0")
        if not any(item.startswith(b"RAY_LAUNCHER_ID=") for item in environ):
            return False
        ours = os.fsencode(f"TMPDIR={tempfile.gettempdir()}")  # gone where a proc does not inherit its environment
        return ours in environ or any(map(self._is_supervisor, _ancestors(pid)))


@contextmanager
def leaving_nothing(*roots: Path) -> Iterator[None]:
    """Fails unless all that comes within the block goes with it, or soon after."""
    before = Traces(*roots)
    yield
    left = before.wait_for_none_new()
    assert not left, "left behind:\n  " + "\n  ".join(left)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails the test that leaves anything of ours behind. Set up first, so that it looks last."""
    with leaving_nothing(tmp_path_factory.getbasetemp()):
        yield


def _things() -> Iterator[str]:
    root = Path(tempfile.gettempdir())
    for directory in root.glob("ray-launcher-*/*"):
        yield f"runtime directory {directory}"
    for spare in root.glob("ray/session_*/logs/ray-launcher-spare-*"):
        if not Path(f"/proc/{spare.name.split('-')[3]}").exists():  # else it belongs to a supervisor that runs
            yield f"spare log file {spare}"
    for container in root.glob("podman/root/vfs-containers/*/"):
        yield f"container {container.name}"
    if ray.is_initialized():
        yield from _things_of_ray()


def _things_of_ray() -> Iterator[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    actors = {actor["name"] for actor in named if actor["namespace"] == NAMESPACE}
    yield from (f"actor {actor}" for actor in actors)
    for group in ray.util.placement_group_table().values():
        if group["state"] != "REMOVED":
            yield f"placement group {group['placement_group_id']} ({group['state']})"
    for key in map(bytes.decode, _internal_kv_list(b"", namespace=NAMESPACE)):
        session, kind, *_ = key.split("/")
        if kind != "past" or f"spawner-{session}" not in actors:  # a session that lives may remember what has ended
            yield f"key {key} in Ray's own store"


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        _, pid = _state(pid)
        yield pid


def _state(pid: int) -> tuple[str, int]:
    """State letter and parent; a process that has just gone is nobody's."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return (fields[0].decode(), int(fields[1])) if fields else ("X", 0)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
