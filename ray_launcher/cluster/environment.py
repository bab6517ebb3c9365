"""The environment that procs of a node start from: the raylet's, without what Ray does to its workers."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping

from ray_launcher.options import LaunchOptions

Environ = dict[bytes, bytes]

#: Set by Ray for the worker alone. They name the worker or change how it runs; a proc gets the raylet's value, if any.
_WORKERS_OWN = (
    b"OMP_NUM_THREADS",  # 1, for Ray tasks without CPUs: cripples training
    b"PYTHONBREAKPOINT",
    b"RAY_JOB_ID",
    b"RAY_RAYLET_PID",
    b"RAY_LD_PRELOAD_ON_WORKERS",
    b"RAY_worker_niceness",  # ours: see agent
    b"RAY_CLIENT_MODE",
    b"RAY_TASK_ID",
    b"SPT_NOENV",
    b"CUDA_VISIBLE_DEVICES",  # decided per proc
)
#: Never a proc's business, whoever set them.
_SECRETS = (b"RAY_AUTH_TOKEN", b"RAY_AUTH_TOKEN_PATH")


def raylet_environ(pid: int) -> Environ:
    """What the raylet was started with; empty where that cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            items = file.read().split(b"\0")
    except OSError:
        return {}
    return {name: value for name, equals, value in (item.partition(b"=") for item in items) if equals}


def base_environ(worker: Mapping[bytes, bytes], raylet: Mapping[bytes, bytes]) -> Environ:
    """The agent's own environment with the worker's settings undone and Ray's token taken out."""
    base = {name: value for name, value in worker.items() if name not in _SECRETS}
    for name in _WORKERS_OWN:
        base.pop(name, None)
        if name in raylet:
            base[name] = raylet[name]
    return base


def additions(opts: LaunchOptions, cookie: str) -> list[bytes]:
    """`NAME=VALUE` items on top of the base: the caller's, then our own, which win."""
    ours = {
        "HYPERACTOR_PROCESS_NAME": opts.process_name,
        "HYPERACTOR_MESH_BOOTSTRAP_MODE": opts.bootstrap_payload,
        "BOOTSTRAP_LOG_CHANNEL": opts.log_channel,
        "RAY_LAUNCHER_ID": cookie,
    }
    env = {**opts.env, **{name: value for name, value in ours.items() if value is not None}}
    if opts.placement.gpu_mask != "inherit":
        env["CUDA_VISIBLE_DEVICES"] = ""  # without a GPU request there is no GPU, not even by accident
    return [os.fsencode(f"{name}={value}") for name, value in env.items()]


def removals(base: Iterable[bytes], globs: Iterable[str]) -> list[bytes]:
    """The names of `base` that match any of the globs (fnmatch, case counts)."""
    patterns = [os.fsencode(glob) for glob in globs]
    return [name for name in base if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
