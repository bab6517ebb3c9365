"""The environment that procs of a node start from: the raylet's, without what Ray does to its workers."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping

from ray_launcher.options import LaunchOptions

Environ = dict[bytes, bytes]

#: Set by Ray for its own use; they name or steer the worker, not the proc. The token opens the whole cluster.
_RAYS_OWN = (
    b"RAY_JOB_ID",
    b"RAY_RAYLET_PID",
    b"RAY_LD_PRELOAD_ON_WORKERS",
    b"RAY_CLIENT_MODE",
    b"RAY_worker_niceness",  # of our own agents, see link
    b"RAY_LAUNCHER_START",  # the same
    b"RAY_AUTH_TOKEN",
    b"SPT_NOENV",
    b"CUDA_VISIBLE_DEVICES",  # decided per proc
)
#: What Ray forces on a worker in place of the raylet's value (measured with 2.60): one OpenMP thread cripples training.
_FORCED = {b"OMP_NUM_THREADS": b"1", b"PYTHONBREAKPOINT": b"ray.util.rpdb.set_trace"}


def raylet_environ(pid: int) -> Environ:
    """What the raylet was started with; empty where that cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            items = file.read().split(b"\0")
    except OSError:
        return {}
    return {name: value for name, equals, value in (item.partition(b"=") for item in items) if equals}


def base_environ(worker: Mapping[bytes, bytes], raylet: Mapping[bytes, bytes], asked: Mapping[str, str]) -> Environ:
    """The agent's own environment with what Ray did to it undone; `asked` for by a runtime_env, a variable stays."""
    base = {name: value for name, value in worker.items() if name not in _RAYS_OWN}
    for name, forced in _FORCED.items():
        if base.get(name) == forced and os.fsdecode(name) not in asked:
            del base[name]
            if name in raylet:
                base[name] = raylet[name]
    return base


def additions(opts: LaunchOptions, cookie: str, raylet: Mapping[bytes, bytes]) -> list[bytes]:
    """`NAME=VALUE` items on top of the base: the caller's, then our own, which win; GPUs as `gpu_mask` says."""
    ours = {
        "HYPERACTOR_PROCESS_NAME": opts.process_name,
        "HYPERACTOR_MESH_BOOTSTRAP_MODE": opts.bootstrap_payload,
        "BOOTSTRAP_LOG_CHANNEL": opts.log_channel,
        "RAY_LAUNCHER_ID": cookie,
    }
    env = {**opts.env, **{name: value for name, value in ours.items() if value is not None}}
    if opts.placement.gpu_mask != "inherit":
        env["CUDA_VISIBLE_DEVICES"] = ""  # without a GPU request there is no GPU, not even by accident
    elif "CUDA_VISIBLE_DEVICES" not in env and b"CUDA_VISIBLE_DEVICES" in raylet:
        env["CUDA_VISIBLE_DEVICES"] = os.fsdecode(raylet[b"CUDA_VISIBLE_DEVICES"])
    return [os.fsencode(f"{name}={value}") for name, value in env.items()]


def removals(base: Iterable[bytes], globs: Iterable[str]) -> list[bytes]:
    """The names of `base` that match any of the globs (fnmatch, case counts)."""
    patterns = [os.fsencode(glob) for glob in globs]
    return [name for name in base if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
