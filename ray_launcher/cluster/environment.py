"""The environment that procs of a node start from: the raylet's, without what Ray does to its workers."""

from __future__ import annotations

import fnmatch
import os
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from ray_launcher.options import LaunchOptions

Environ = dict[bytes, bytes]

#: Set by Ray for its own use; they name or steer the worker, not the proc. The token opens the whole cluster.
_RAYS_OWN = (
    b"RAY_JOB_ID",
    b"RAY_RAYLET_PID",
    b"RAY_LD_PRELOAD_ON_WORKERS",
    b"RAY_CLIENT_MODE",
    b"RAY_worker_niceness",  # of our own agents, see `worker_env`
    b"RAY_LAUNCHER_START",  # the same
    b"RAY_AUTH_TOKEN",
    b"SPT_NOENV",
)
#: What Ray forces on a worker in place of the raylet's value (measured with 2.60): one OpenMP thread cripples training.
_FORCED = {b"OMP_NUM_THREADS": b"1", b"PYTHONBREAKPOINT": b"ray.util.rpdb.set_trace"}


#: Seconds that Ray gives a runtime_env to be set up.
_SETUP = 600.0
NOT_STARTED = "the node may lack disk space, inodes, memory or processes for a Ray worker, see Ray's logs there"


def worker_env(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """The runtime_env of a spawner or agent, from the user's.

    At nice 0 (Ray's workers have 15), which a worker can have from its start without a privilege. No two are the same:
    one that could not be set up, on a full disk say, is answered by Ray with that error for ten minutes.
    """
    ours = {"RAY_worker_niceness": "0", "RAY_LAUNCHER_START": uuid.uuid4().hex[:8]}
    return {**runtime_env, "env_vars": {**ours, **runtime_env.get("env_vars", {})}}


def setup_time(runtime_env: Mapping[str, Any]) -> float:
    """Seconds that a worker's start may take longer for it."""
    if runtime_env.keys() <= {"env_vars"}:
        return 0.0
    seconds = float((runtime_env.get("config") or {}).get("setup_timeout_seconds", _SETUP))
    return seconds if seconds >= 0 else float("inf")


def raylet_environ(pid: int) -> Environ:
    """What the raylet was started with; empty where that cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            items = file.read().split(b"\0")
    except OSError:
        return {}
    return {name: value for name, equals, value in (item.partition(b"=") for item in items) if equals}


def base_environ(
    worker: Mapping[bytes, bytes], raylet: Mapping[bytes, bytes], asked: Mapping[str, str], masks: Iterable[str]
) -> Environ:
    """The agent's own environment with what Ray did to it undone; `asked` for by a runtime_env, a variable stays.

    masks: variables that show accelerators, which are decided per proc.
    """
    left_out = {*_RAYS_OWN, *map(os.fsencode, masks)}
    base = {name: value for name, value in worker.items() if name not in left_out}
    for name, forced in _FORCED.items():
        if base.get(name) == forced and os.fsdecode(name) not in asked:
            del base[name]
            if name in raylet:
                base[name] = raylet[name]
    return base


def additions(
    opts: LaunchOptions,
    cookie: str,
    raylet: Mapping[bytes, bytes],
    masks: Mapping[str, str],
    granted: Mapping[str, str],
) -> list[bytes]:
    """`NAME=VALUE` items on top of the base: the caller's, then our own, which win.

    masks: the variables that show the proc its accelerators.  granted: variables of its rank, and the like.
    """
    ours = {
        "HYPERACTOR_PROCESS_NAME": opts.process_name,
        "HYPERACTOR_MESH_BOOTSTRAP_MODE": opts.bootstrap_payload,
        "BOOTSTRAP_LOG_CHANNEL": opts.log_channel,
        "RAY_LAUNCHER_ID": cookie,
        **granted,
    }
    env = {**opts.env, **{name: value for name, value in ours.items() if value is not None}}
    if opts.placement.gpu_mask != "inherit":
        env.update(masks)  # not even by accident does it see others
    else:
        env.update({name: os.fsdecode(raylet[key]) for name, key in _inherited(masks, raylet) if name not in env})
    return [os.fsencode(f"{name}={value}") for name, value in env.items()]


def _inherited(names: Iterable[str], raylet: Mapping[bytes, bytes]) -> list[tuple[str, bytes]]:
    return [(name, key) for name in names if (key := os.fsencode(name)) in raylet]


def removals(base: Iterable[bytes], globs: Iterable[str]) -> list[bytes]:
    """The names of `base` that match any of the globs (fnmatch, case counts)."""
    patterns = [os.fsencode(glob) for glob in globs]
    return [name for name in base if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
