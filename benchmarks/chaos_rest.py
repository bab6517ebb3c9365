"""What a session has left behind: nothing, when all is well."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ray
from chaos_procfs import environ, processes
from ray.experimental.internal_kv import _internal_kv_list

NAMESPACE = "ray_launcher"
KINDS = ("orphans", "leaked_actors", "leaked_placement_groups", "leaked_keys", "leaked_files", "leaked_fds")
#: File descriptors that the driver may have more than before. Ray closes its connections to actors that are gone in its
#: own time; with 13 of them killed there were 34 before and 33 after, so this does not hide one that leaks per kill.
FDS = 4


def rest(session: str, stamps: Path, fds: int, patience: float) -> dict[str, list[str]]:
    """{kind: what is left} after `patience` seconds at the latest, as soon as it is nothing.

    stamps: the directory that every program of the run has in its arguments.  fds: how many the driver had before.
    """
    give_up = time.monotonic() + patience
    while any((left := _now(session, stamps, fds)).values()) and time.monotonic() < give_up:
        time.sleep(0.2)
    return left


def fds_of_this_process() -> list[str]:
    """What its file descriptors are."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(path.readlink()))
        except OSError:  # the one of this listing
            continue
    return found


def _now(session: str, stamps: Path, fds: int) -> dict[str, list[str]]:
    return {
        "orphans": list(orphans(session, stamps)),
        "leaked_actors": [
            str(actor["name"])
            for actor in ray.util.list_named_actors(all_namespaces=True)
            if actor["namespace"] == NAMESPACE
        ],
        "leaked_placement_groups": [
            f"{group['placement_group_id']} {group['state']}"
            for group in ray.util.placement_group_table().values()
            if group["state"] != "REMOVED"
        ],
        "leaked_keys": [key.decode(errors="replace") for key in _internal_kv_list(b"", namespace=NAMESPACE.encode())],
        "leaked_files": list(files()),
        "leaked_fds": _more_fds(fds),
    }


def orphans(session: str, stamps: Path) -> Iterator[str]:
    """Processes of the session: by cookie, by the programs' own arguments, and those that served it."""
    root = f"TMPDIR={tempfile.gettempdir()}"
    for process in processes():
        serves = process.command.startswith(("ray::ClusterSpawner", "ray::Agent"))
        variables = environ(process.pid)
        if (
            any(item.startswith(f"RAY_LAUNCHER_ID={session}/") for item in variables)
            or f" {stamps} " in process.command
            or f"/{session}-" in process.command
            or (serves and root in variables)
        ):
            yield f"{process.pid}: {process.command}"


def files() -> Iterator[str]:
    """Runtime directories with their sockets, and log files that were set aside."""
    root = Path(tempfile.gettempdir())
    for path in root.glob(f"ray-launcher-{os.geteuid()}/*"):
        yield f"{path}{_last_words(path / 'supervisor.log')}"
    for path in root.glob("ray/session_[0-9]*/logs/ray-launcher-spare-*"):
        yield str(path)


def _last_words(log: Path) -> str:
    """What a supervisor said as it crashed."""
    try:
        return f": {log.read_text(errors='replace')}"
    except OSError:
        return ""


def _more_fds(before: int) -> list[str]:
    found = fds_of_this_process()
    return sorted(found) if len(found) > before + FDS else []
