"""Examines a cluster: looks at every node at once, within a bounded time, and says what would bite."""

from __future__ import annotations

import platform
import time
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError

from ray_launcher import checks
from ray_launcher.checkup import Diagnosis, NodeFacts, Ours, diagnose, silent
from ray_launcher.cluster import examiner
from ray_launcher.cluster.environment import worker_env
from ray_launcher.cluster.nodes import node_of, on_node
from ray_launcher.errors import ProcLauncherError
from ray_launcher.port import gone_because

#: How often a node is asked for the time: the quickest answer tells most.
_CLOCK_LOOKS = 3


def examine_cluster(timeout: float = 60.0) -> Diagnosis:
    """Look at every living node of the cluster that this process is connected to. A worker is started on each.

    A node that does not answer within `timeout` seconds is a finding. Raises ValueError or TypeError for that,
    `ProcLauncherError` where this process is not connected.
    """
    timeout = checks.seconds("timeout", timeout)
    if not ray.is_initialized():
        raise ProcLauncherError("this process is not connected to a cluster: call ray.init(...) first")
    deadline = time.monotonic() + timeout
    living = [facts for facts in ray.nodes() if facts["Alive"]]  # type: ignore[no-untyped-call]
    examiners = _start(living)
    asked = {node_id: each.facts.remote() for node_id, each in examiners.items()}
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout)
    nodes, findings = [], []
    for facts in living:
        node_id, ip = facts["NodeID"], facts["NodeManagerAddress"]
        try:
            seen = ray.get(asked[node_id], timeout=0)
            clock = _clock(examiners[node_id], deadline)
        except ray.exceptions.GetTimeoutError:
            findings.append(silent(node_id, ip, f"nothing within {timeout:g} s"))
        except RayError as error:
            findings.append(silent(node_id, ip, gone_because(error)))
        else:
            nodes.append(NodeFacts(node_id, ip, **seen, ray_memory=_memory(facts), clock=clock))
            findings += diagnose(nodes[-1], _ours())
    for each in examiners.values():
        ray.kill(each)
    return Diagnosis(tuple(nodes), tuple(findings))


def _start(living: list[dict[str, Any]]) -> dict[str, Any]:
    """An examiner on each node, by its id."""
    cloudpickle.register_pickle_by_value(examiner)  # type: ignore[no-untyped-call]
    try:
        actor: Any = ray.remote(examiner.Examiner)
        options = {"num_cpus": 0, "max_restarts": 0, "enable_task_events": False}
        return {
            facts["NodeID"]: actor.options(**options, **on_node(node_of(facts)), runtime_env=worker_env({})).remote()
            for facts in living
        }
    finally:
        cloudpickle.unregister_pickle_by_value(examiner)  # type: ignore[no-untyped-call]


def _clock(asked: Any, deadline: float) -> float:
    """By how much it is ahead of ours at least; 0 where that may be the time that the answer takes."""
    ahead = 0.0
    quickest = float("inf")
    for _ in range(_CLOCK_LOOKS):
        sent = time.time()
        theirs: float = ray.get(asked.clock.remote(), timeout=max(0.0, deadline - time.monotonic()))
        received = time.time()
        if received - sent < quickest:
            quickest = received - sent
            ahead = max(theirs - received, 0.0) + min(theirs - sent, 0.0)
    return ahead


def _memory(facts: dict[str, Any]) -> int:
    resources = facts["Resources"]
    return int(resources.get("memory", 0) + resources.get("object_store_memory", 0))


def _ours() -> Ours:
    return Ours(ray.__version__, platform.python_version(), examiner.our_version() or "")
