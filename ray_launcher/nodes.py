"""The nodes of a cluster, and how many procs of which sessions are on each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ray
from ray.exceptions import RayError

from ray_launcher.cluster.waiting import capacities
from ray_launcher.sessions import spawners

#: Seconds for spawners to answer.
_ANSWER = 5.0


@dataclasses.dataclass(frozen=True)
class NodeSummary:
    """One living node. What there is of resources, and what of it is free, as Ray schedules it; memory in bytes.

    hostname: as its machine calls itself.  procs: how many that have not ended are there, by session; a session whose
    spawner does not answer is left out.
    """

    node_id: str
    ip: str
    hostname: str
    labels: Mapping[str, str]
    cpus: float
    cpus_free: float
    gpus: float
    gpus_free: float
    memory: int
    memory_free: int
    procs: Mapping[str, int]


def list_nodes() -> list[NodeSummary]:
    """Every living node of the cluster that this process is connected to. Takes 5 s where a spawner is silent.

    Raises `ProcLauncherError` where this process is not connected.
    """
    asked = {name: handle.whereabouts.remote() for name, handle in spawners().items()}
    if asked:
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ANSWER)
    where: dict[str, dict[str, int]] = {}  # by node and session
    for session, ref in asked.items():
        try:
            counts: dict[str, int] = ray.get(ref, timeout=0)
        except RayError:
            continue  # it has ended just now, or is being started again
        for node_id, count in counts.items():
            where.setdefault(node_id, {})[session] = count
    hostnames = {facts["NodeID"]: facts["NodeManagerHostname"] for facts in ray.nodes()}  # type: ignore[no-untyped-call]
    found = []
    for each in capacities():
        node, total, free = each.node, each.total, each.free
        found.append(
            NodeSummary(
                node.node_id,
                node.ip,
                hostnames.get(node.node_id, ""),
                dict(node.labels),
                total.get("CPU", 0.0),
                free.get("CPU", 0.0),
                total.get("GPU", 0.0),
                free.get("GPU", 0.0),
                int(total.get("memory", 0)),
                int(free.get("memory", 0)),
                where.get(node.node_id, {}),
            )
        )
    return sorted(found, key=lambda node: (node.ip, node.node_id))
