"""Agents as Ray actors: how one is created on its node."""

from __future__ import annotations

from typing import Any

import ray

from ray_launcher.cluster.actors import NAMESPACE, agent_actor
from ray_launcher.cluster.agent import Agent
from ray_launcher.cluster.environment import worker_env
from ray_launcher.cluster.nodes import Node, on_node
from ray_launcher.cluster.wire import SessionInfo


def start_agent(session: SessionInfo, runtime_env: dict[str, Any], node: Node, name: str, again: bool) -> Any:
    """Create the agent's actor on its node, or get the one that is there.

    Detached, since an owned one would die with a spawner that only restarts. Restarted and asked again for ever:
    whoever answers knows whether he has been joined. It finds the spawner by its name: Ray would keep a handle in its
    object store for the restarts, and warns on the driver's screen that this could get lost.
    """
    return (
        ray.remote(Agent)
        .options(
            name=agent_actor(name),
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
        .remote(session, name, again)
    )
