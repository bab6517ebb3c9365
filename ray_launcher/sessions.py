"""The sessions of a cluster: what there is, whoever made them; and how one is found, or made."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import ray
from ray.exceptions import RayError

from ray_launcher.cluster.actors import NAMESPACE, find, new_agent, spawner_actor
from ray_launcher.cluster.agents import start_agent
from ray_launcher.cluster.environment import worker_env
from ray_launcher.cluster.nodes import living_nodes, on_node
from ray_launcher.cluster.spawner import ClusterSpawner
from ray_launcher.cluster.wire import SessionInfo
from ray_launcher.errors import ProcLauncherError
from ray_launcher.info import ProcState
from ray_launcher.packages import brought
from ray_launcher.port import gone_because
from ray_launcher.spawner import start_spawner

#: Seconds for spawners to answer what there is to know of their sessions; one that is started again takes a second.
_ANSWER = 5.0


@dataclasses.dataclass(frozen=True)
class SessionSummary:
    """One session of the cluster.

    detached: it outlives its driver.  created_at: UTC.  counts: procs by state, those that ended lately included; None
    where the spawner does not answer, being started again, say.
    """

    name: str
    detached: bool | None
    created_at: datetime | None
    counts: Mapping[ProcState, int] | None


def list_sessions() -> list[SessionSummary]:
    """Every session of the cluster that this process is connected to, by name. Takes 5 s where a spawner is silent.

    Raises `ProcLauncherError` where this process is not connected.
    """
    asked = {name: handle.about.remote() for name, handle in spawners().items()}
    if asked:
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ANSWER)
    found = (_summary(name, ref) for name, ref in asked.items())
    return [summary for summary in found if summary is not None]


def spawners() -> dict[str, Any]:
    """The handles of all spawners of the cluster, by the names of their sessions. Raises `ProcLauncherError`."""
    if not ray.is_initialized():
        raise ProcLauncherError("this process is not connected to a cluster: call ray.init(...) first")
    prefix = spawner_actor("")
    actors: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)
    names = sorted(
        actor["name"].removeprefix(prefix)
        for actor in actors
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix)
    )
    handles = {name: find(spawner_actor(name)) for name in names}
    return {name: handle for name, handle in handles.items() if handle is not None}


def _summary(name: str, ref: Any) -> SessionSummary | None:
    if not ray.wait([ref], timeout=0)[0]:
        return SessionSummary(name, None, None, None)
    try:
        info, _, counts = ray.get(ref)
    except RayError:
        return None  # it has ended just now
    return SessionSummary(name, info.detached, datetime.fromtimestamp(info.created, timezone.utc), counts)


def attach_or_start(info: SessionInfo, runtime_env: dict[str, Any] | None) -> tuple[Any, list[Any] | None]:
    """The spawner of a session, and the agents that were started with it; None: it was there, and both are detached.

    Raises ValueError where it cannot be used, `ProcLauncherError` where it is gone for good just now.
    """
    runtime_env = None if runtime_env is None else brought(runtime_env)
    found = find(spawner_actor(info.name))
    if found is None:
        try:
            return _start(info, runtime_env or {})
        except ValueError:
            found = find(spawner_actor(info.name))
            if found is None:
                raise
    theirs, environment, _ = about(info.name, found)
    if not theirs.detached:
        raise ValueError(f"session {info.name!r} exists already on this cluster: end it, or choose another name")
    if not info.detached:
        raise ValueError(f"session {info.name!r} exists and is detached: pass detached=True, or choose another name")
    if runtime_env is not None and runtime_env != environment:
        raise ValueError(
            f"runtime_env is not that of session {info.name!r}, which exists: leave it out, or end that session"
        )
    return found, None


def about(name: str, spawner: Any) -> tuple[SessionInfo, dict[str, Any], dict[ProcState, int]]:
    """What that spawner has to say of its session. Raises `ProcLauncherError` where it is gone for good."""
    try:
        said: tuple[SessionInfo, dict[str, Any], dict[ProcState, int]] = ray.get(spawner.about.remote())
    except RayError as error:
        raise ProcLauncherError(f"session {name!r} has just ended: {gone_because(error)}") from None
    return said


def _start(info: SessionInfo, runtime_env: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The spawner, on the driver's own node if it is one, and its agents.

    Where procs may go there, its agent is started at the same time: each takes most of a second.
    """
    node_id = ray.get_runtime_context().get_node_id()
    here = next((node for node in living_nodes() if node.node_id == node_id), None)
    begun = (here, new_agent(info.name, here)) if here is not None and here.cpus > 0 else None
    options = {
        "name": spawner_actor(info.name),
        "max_restarts": -1,
        "max_task_retries": -1,
        "namespace": NAMESPACE,
        "lifetime": "detached" if info.detached else None,
        "runtime_env": worker_env(runtime_env),
        **({} if here is None else on_node(here, soft=True)),
    }
    info = dataclasses.replace(info, created=time.time())
    spawner = start_spawner(ClusterSpawner, info, runtime_env, begun, actor_options=options)
    return spawner, [start_agent(info, runtime_env, *begun, again=False)] if begun is not None else []
