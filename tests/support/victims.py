"""The layers of one session on one node, found by their pids, and the ways to kill them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import ray
from node_rig import running, stat, until
from ray_rig import DEADLINE, agents_of, supervisors_of

from ray_launcher import RayProcLauncher


def guard_and_supervisor(session: str, node_id: str) -> tuple[int, int]:
    """Their pids: the second is the child of the first."""
    first, second = supervisors_of(f"{session}-{node_id[:16]}")
    return (second, first) if int(stat(first)[1]) == second else (first, second)


def kill_supervisor(session: str, node_id: str) -> None:
    os.kill(guard_and_supervisor(session, node_id)[1], signal.SIGKILL)


def kill_guard_and_supervisor(session: str, node_id: str) -> None:
    guard, supervisor = guard_and_supervisor(session, node_id)
    os.kill(supervisor, signal.SIGSTOP)  # else it would notice, and tidy up
    os.kill(guard, signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)


def agent_on(session: str, node_id: str) -> Any:
    """The agent's handle."""
    return next(agent for agent in agents_of(session) if node_id[:16] in ray.get(agent.info.remote())["directory"])


def restarted_spawner(launcher: RayProcLauncher) -> None:
    """SIGKILL the spawner; return when the next one answers."""
    before = ray.get(launcher._spawner.facts.remote())["pid"]
    os.kill(before, signal.SIGKILL)
    until(lambda: ray.get(launcher._spawner.facts.remote())["pid"] != before, "it is started again", DEADLINE)


class Victims:
    """What `strike` kills of a session on one node. Pids are looked up beforehand: a dead layer cannot be asked."""

    def __init__(self, launcher: RayProcLauncher, node_id: str) -> None:
        self._agent = agent_on(launcher.session, node_id)
        self._agent_pid = ray.get(self._agent.info.remote())["pid"]
        self._spawner_pid = ray.get(launcher._spawner.facts.remote())["pid"]
        self._guard, self._supervisor = guard_and_supervisor(launcher.session, node_id)
        self._ways: dict[str, Callable[[], None]] = {
            "agent": self._kill_agent,
            "agent, as Ray ends it": lambda: ray.kill(self._agent, no_restart=False),
            "spawner": self._kill_spawner,
            "agent and spawner": self._kill_agent_and_spawner,
            "supervisor": lambda: os.kill(self._supervisor, signal.SIGKILL),
            "supervisor, asked to end": lambda: os.kill(self._supervisor, signal.SIGTERM),
            "supervisor, stopped for a while": lambda: os.kill(self._supervisor, signal.SIGSTOP),
            "guard": lambda: os.kill(self._guard, signal.SIGKILL),
            "guard and supervisor": self._kill_both,
            "agent, guard and supervisor": self._kill_all,
        }

    def strike(self, victim: str) -> None:
        self._ways[victim]()

    def are_gone(self) -> None:
        """Return when the supervisor and its guard are."""
        until(lambda: not running(self._supervisor) and not running(self._guard), "the supervisor is gone", DEADLINE)

    def relent(self) -> None:
        """Let go on what was only stopped."""
        if running(self._supervisor):
            os.kill(self._supervisor, signal.SIGCONT)

    def _kill_agent(self) -> None:
        os.kill(self._agent_pid, signal.SIGKILL)

    def _kill_spawner(self) -> None:
        os.kill(self._spawner_pid, signal.SIGKILL)

    def _kill_agent_and_spawner(self) -> None:
        self._kill_agent()
        self._kill_spawner()

    def _kill_all(self) -> None:
        self._kill_agent()
        self._kill_both()

    def _kill_both(self) -> None:
        os.kill(self._supervisor, signal.SIGSTOP)  # else it would notice, and tidy up
        os.kill(self._guard, signal.SIGKILL)
        os.kill(self._supervisor, signal.SIGKILL)


def is_there(launcher: RayProcLauncher, node_id: str) -> None:
    """Return when every layer of the session on this node answers."""
    ray.get(launcher._spawner.facts.remote(), timeout=DEADLINE)
    until(lambda: agents_of(launcher.session), "an agent", DEADLINE)
    until(
        lambda: len(supervisors_of(f"{launcher.session}-{node_id[:16]}")) == 2, "a supervisor and its guard", DEADLINE
    )
