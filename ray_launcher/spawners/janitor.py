"""The janitor of a container spawner: outlives it, and removes what its containers leave when something was killed.

What is killed is always the container itself, see `shim`. But an engine without a daemon has nobody left then who
would take its records and layers away.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_launcher import ProcLauncherError, RayProcLauncher, UnknownSessionError, find_leftovers, list_nodes
from ray_launcher.spawners import shim
from ray_launcher.spawners.engine import LAUNCH_LABEL, SESSION_LABEL, Engine

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

    It has no handle of the spawner, which would keep that alive, but the session's end is the spawner's.
    """

    def __init__(self, engine: Engine, session: str) -> None:
        self._engine, self._session = engine, session

    def watch(self) -> None:
        """Returns never: when its work is done, so is this actor."""
        while True:
            try:
                for _ in RayProcLauncher.find(self._session).events():
                    pass
            except UnknownSessionError:
                break
            except ProcLauncherError:
                time.sleep(_RETRY)
        find_leftovers(self._session, _PATIENCE)  # returns when its agents have ended their procs, each in its grace
        self._reap([node.node_id for node in list_nodes()], SESSION_LABEL, self._session)
        ray.kill(ray.get_runtime_context().current_actor)

    def remove(self, node_id: str, launch: str) -> None:
        """What is left of one launch."""
        self._reap([node_id], LAUNCH_LABEL, launch)

    def _reap(self, nodes: list[str], label: str, value: str) -> None:
        listing, removal = self._engine.listing(label, value), self._engine.removal()
        asked = {_ask(node, listing, removal): node for node in nodes}
        ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER)
        for ref, node in asked.items():
            try:
                left = ray.get(ref, timeout=0) < 0
            except RayError:  # it did not answer, or is gone
                left = True
            if left:
                _logger.warning("node %s may have containers left: %s", node, " ".join(listing))


def _ask(node: str, listing: list[str], removal: list[str]) -> Any:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(shim.reap).options(num_cpus=0, scheduling_strategy=place).remote(listing, removal)
