"""Sessions that outlive their launchers, for tests that kill what is around them."""

from __future__ import annotations

import os
import signal

import ray

from ray_launcher import RayProcLauncher


def attached(name: str) -> RayProcLauncher:
    return RayProcLauncher(session=name, detached=True)


def kill_spawner(name: str) -> int:
    """SIGKILL its process; returns the pid of the next."""
    spawner = ray.get_actor(f"spawner-{name}", "ray_launcher")
    pid: int = ray.get(spawner.facts.remote())["pid"]
    os.kill(pid, signal.SIGKILL)
    return int(ray.get(spawner.facts.remote())["pid"])
