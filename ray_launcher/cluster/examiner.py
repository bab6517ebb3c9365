"""Looks at one node, in a Ray worker there. Sent along by value: it imports nothing of ours, which may be missing."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ray

#: Seconds between two looks at zombies: whoever waits for its children has done so by then.
_PAUSE = 0.5
_SUBREAPER = 36
#: Of a cgroup v1 without a limit.
_UNLIMITED = 1 << 60


class Examiner:
    """An actor; it is asked for the time again and again to see how far apart clocks are."""

    def clock(self) -> float:
        """`time.time` here."""
        return time.time()

    def facts(self) -> dict[str, Any]:
        """See `checkup.NodeFacts`."""
        logs = _log_directory()
        disk = os.statvfs(logs)
        zombies = _zombies()
        time.sleep(_PAUSE)
        return {
            "ray": ray.__version__,
            "python": platform.python_version(),
            "ray_launcher": our_version(),
            "niceness": os.getpriority(os.PRIO_PROCESS, 0),
            "zombies": len(zombies & _zombies()),
            "first": _read("/proc/1/comm").strip(),
            "authentication": _authentication(),
            "log_directory": logs,
            "disk": disk.f_bavail * disk.f_frsize,
            "inodes": disk.f_favail if disk.f_files else None,
            "files": _limit(resource.RLIMIT_NOFILE),
            "processes": _limit(resource.RLIMIT_NPROC),
            "environ_readable": _is_environ_readable(),
            "ptrace_scope": _number(_read("/proc/sys/kernel/yama/ptrace_scope")),
            "hidepid": _hidepid(),
            "lacking": tuple(_lacking()),
            "memory_limit": _cgroup("memory", "memory.max", "memory.limit_in_bytes"),
            "pids_limit": _cgroup("pids", "pids.max", "pids.max"),
            "pids": _cgroup("pids", "pids.current", "pids.current"),
        }


def _log_directory() -> str:
    worker = importlib.import_module("ray._private.worker")  # private: it has no public name
    return str(worker._global_node.get_logs_dir_path())  # noqa: SLF001  # the same


def our_version() -> str | None:
    """Of ray_launcher; None where it cannot be imported."""
    try:
        return str(importlib.import_module("ray_launcher").__version__)
    except Exception:  # noqa: BLE001  # whatever is wrong with it, an agent could not start either
        return None


def _authentication() -> str | None:
    try:
        authentication = importlib.import_module("ray._private.authentication.authentication_utils")
        raylet = importlib.import_module("ray._raylet")
        return str(authentication.get_authentication_mode_name(raylet.get_authentication_mode()))
    except (ImportError, AttributeError):  # an older Ray has none
        return None


def _zombies() -> set[tuple[int, str]]:
    """Children of PID 1, by pid and start time."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        fields = _read(f"{path}/stat").rpartition(")")[2].split()
        if fields[:2] == ["Z", "1"]:
            found.add((int(path.name), fields[19]))
    return found


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _is_environ_readable() -> bool:
    """Whether a child shows it."""
    command = [sys.executable, "-I", "-S", "-c", "print(flush=True); input()"]
    environ = {**os.environ, "RAY_LAUNCHER_DOCTOR": "looks"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as child:
        try:
            ready = child.stdout is not None and child.stdout.readline()  # it has been exec'ed, or has ended
            return bool(ready) and "RAY_LAUNCHER_DOCTOR=looks" in _read(f"/proc/{child.pid}/environ").split("\0")
        finally:
            child.kill()


def _hidepid() -> str | None:
    for mount in _read("/proc/mounts").splitlines():
        _, where, kind, options, *_ = mount.split()
        if kind == "proc" and where == "/proc":
            return dict(option.partition("=")[::2] for option in options.split(",")).get("hidepid")
    return None


def _lacking() -> list[str]:
    lacking = []
    script = f"import ctypes; print(ctypes.CDLL(None).prctl({_SUBREAPER}, 1, 0, 0, 0))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, check=False)
    if done.stdout.strip() != b"0":  # not the exit status, which is 0 in a worker that ignores SIGCHLD
        lacking.append("child subreapers")
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        lacking.append("/proc/PID/task/TID/children (CONFIG_PROC_CHILDREN)")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        lacking.append("pidfd_open")
    return lacking


def _cgroup(controller: str, name: str, old_name: str) -> int | None:
    """The tightest of the limits on the way up, or the figure of the group itself; None: there is none."""
    found = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, file = Path("/sys/fs/cgroup"), name
        elif controller in controllers.split(","):
            root, file = Path("/sys/fs/cgroup", controller), old_name
        else:
            continue
        group = root / path.lstrip("/")
        groups = [group, *group.parents] if group != root else [root]
        values = [_number(_read(str(each / file))) for each in groups if root in (each, *each.parents)]
        found += [value for value in values if value is not None and value < _UNLIMITED]
    return min(found, default=None)


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(errors="replace")
    return ""
