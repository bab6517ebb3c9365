"""The janitor of a container spawner: outlives it, and removes what containers leave when something was killed.

It begins with what others have left, those that were killed with their janitors.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_launcher import ProcLauncherError, RayProcLauncher, UnknownSessionError, find_leftovers, list_nodes
from ray_launcher.spawners.engine import LAUNCH_LABEL, SESSION_LABEL, SHIM_LABEL, Engine
from ray_launcher.spawners.reaper import reap

_logger = logging.getLogger(__name__)
_NAMESPACE = "ray_launcher"
#: Seconds between two attempts to reach the session, and those that its procs get to be gone once it is.
_RETRY, _PATIENCE = 0.5, 120.0
#: Seconds for a node to answer.
_ANSWER = 120.0


def start_janitor(engine: Engine, session: str) -> Any:
    """Start that of a spawner with this session; returns its handle."""
    options: dict[str, Any] = {
        "name": f"container-janitor-{session}",
        "namespace": _NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "max_concurrency": 1000,
    }
    return ray.remote(Janitor).options(**options).remote(engine, session)


class Janitor:
    """Watches a session; when that is gone, with its procs, it removes the containers that are left, and leaves.

    It has no handle of the spawner, which would keep that alive, but the session's end is the spawner's. It begins by
    itself, because the spawner may be killed before it can ask for anything, and this actor with it.
    """

    def __init__(self, engine: Engine, session: str) -> None:
        self._engine, self._session = engine, session
        self._me: Any = ray.get_runtime_context().current_actor
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Does not return: when the work is done, so is this actor; where it cannot be done, Ray starts it again."""
        try:
            self._see_to_it()
        except Exception:
            _logger.exception("the janitor of session %s begins again", self._session)
        os._exit(1)

    def _see_to_it(self) -> None:
        self._reap(_nodes(), SHIM_LABEL, lost_only=True)
        while True:
            try:
                RayProcLauncher.find(self._session).wait_until_over()
            except UnknownSessionError:
                break
            except ProcLauncherError:
                pass
            time.sleep(_RETRY)
        find_leftovers(self._session, _PATIENCE)  # returns when its agents have ended their procs, each in its grace
        self._reap(_nodes(), f"{SESSION_LABEL}={self._session}")
        ray.kill(self._me)
        threading.Event().wait()

    def remove(self, node_id: str, launch: str) -> None:
        """What is left of one launch."""
        self._reap([node_id], f"{LAUNCH_LABEL}={launch}")

    def _reap(self, nodes: list[str], label: str, *, lost_only: bool = False) -> None:
        listing, removal = self._engine.listing(label), self._engine.removal()
        asked = {_ask(node, listing, removal, lost_only): node for node in nodes}
        ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER)
        for ref, node in asked.items():
            try:
                left = not ray.get(ref, timeout=0)
            except RayError:  # it did not answer, or is gone
                left = True
            if left:
                _logger.warning("node %s may have containers left: %s", node, " ".join(listing))


def _nodes() -> list[str]:
    return [node.node_id for node in list_nodes()]


def _ask(node: str, listing: list[str], removal: list[str], lost_only: bool) -> Any:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(reap).options(num_cpus=0, scheduling_strategy=place)
    return task.remote(listing, removal, lost_only)
