"""Whom a test may kill, in which way: the layers of a session, and what it takes to find them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

import ray
from node_rig import running, stat, until
from ray_rig import DEADLINE, agents_of, supervisors_of

from ray_launcher import RayProcLauncher


def guard_and_supervisor(session: str, node_id: str) -> tuple[int, int]:
    """Their pids: the second is the child of the first."""
    first, second = supervisors_of(f"{session}-{node_id[:16]}")
    return (second, first) if int(stat(first)[1]) == second else (first, second)


def agent_on(session: str, node_id: str) -> dict[str, Any]:
    """Its facts."""
    facts: list[dict[str, Any]] = ray.get([agent.info.remote() for agent in agents_of(session)])
    return next(each for each in facts if node_id[:16] in each["directory"])


def kill_supervisor(session: str, node_id: str) -> None:
    os.kill(guard_and_supervisor(session, node_id)[1], signal.SIGKILL)


def kill_guard_and_supervisor(session: str, node_id: str) -> None:
    guard, supervisor = guard_and_supervisor(session, node_id)
    os.kill(supervisor, signal.SIGSTOP)  # else it would notice, and tidy up
    os.kill(guard, signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)


class Layers:
    """The processes of a session's layers on one node, looked up beforehand: a blow takes no time."""

    def __init__(self, launcher: RayProcLauncher, node_id: str) -> None:
        self._launcher, self._node_id = launcher, node_id
        self.guard, self.supervisor = guard_and_supervisor(launcher.session, node_id)
        self.agent = int(agent_on(launcher.session, node_id)["pid"])
        self.spawner = spawner_of(launcher)
        self._agent = next(agent for agent in agents_of(launcher.session) if node_id[:16] in _directory_of(agent))

    def kill(self, *pids: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it may have followed another
                os.kill(pid, signal.SIGKILL)

    def strike(self, victim: str) -> None:
        """Hit; the name tells whom, and how where it is not SIGKILL."""
        if victim == "agent by Ray":
            ray.kill(self._agent, no_restart=False)
        elif victim == "supervisor SIGSTOP":
            os.kill(self.supervisor, signal.SIGSTOP)
        elif victim.endswith("SIGTERM"):
            os.kill(self.supervisor, signal.SIGTERM)
        else:
            names = victim.split(" and ")
            if "guard" in names:
                os.kill(self.supervisor, signal.SIGSTOP)
            if names == ["guard"]:
                self.kill(self.guard)
                os.kill(self.supervisor, signal.SIGCONT)
            else:
                self.kill(*(getattr(self, name) for name in names))

    def let_go(self, victim: str) -> None:
        """After a second without the supervisor, it goes on."""
        if victim == "supervisor SIGSTOP":
            time.sleep(1)  # a clock: that long it is stopped
            os.kill(self.supervisor, signal.SIGCONT)


def spawner_of(launcher: RayProcLauncher) -> int:
    """The pid of its process, once it answers."""
    return int(ray.get(launcher._spawner.facts.remote(), timeout=DEADLINE)["pid"])


def kill_and_await(pid: int) -> None:
    """SIGKILL, and return when it is dead. Two processes never have the same pid in one test."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not running(pid), f"{pid} is dead", DEADLINE)


def _directory_of(agent: Any) -> str:
    return str(ray.get(agent.info.remote(), timeout=DEADLINE)["directory"])
