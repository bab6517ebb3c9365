"""Agents as Ray actors: how one is created on its node, and found again by its name."""

from __future__ import annotations

from typing import Any

import ray

from ray_launcher.cluster.agent import Agent
from ray_launcher.cluster.environment import worker_env
from ray_launcher.cluster.nodes import Node, on_node
from ray_launcher.cluster.wire import NAMESPACE, SessionInfo


def find_agent(name: str) -> Any:
    """The actor of that name; None where there is none any more."""
    try:
        return ray.get_actor(_actor(name), NAMESPACE)
    except ValueError:
        return None


def start_agent(session: SessionInfo, runtime_env: dict[str, Any], node: Node, name: str, again: bool) -> Any:
    """Create the agent's actor on its node, or get the one that is there. To be called in the spawner.

    Detached, since an owned one would die with a spawner that only restarts. Restarted and asked again for ever:
    whoever answers knows whether he has been joined.
    """
    return (
        ray.remote(Agent)
        .options(
            name=_actor(name),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_concurrency=1000,
            max_restarts=-1,
            max_task_retries=-1,
            enable_task_events=False,
            **on_node(node),
            runtime_env=worker_env(runtime_env),
        )
        .remote(session, name, ray.get_runtime_context().current_actor, again)
    )


def _actor(name: str) -> str:
    return f"agent-{name}"
