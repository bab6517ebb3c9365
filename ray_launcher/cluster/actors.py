"""The names of a session's actors, and how they are found by them from anywhere in the cluster."""

from __future__ import annotations

import uuid
import warnings
from typing import Any

import ray

from ray_launcher.cluster.nodes import Node

NAMESPACE = "ray_launcher"


def spawner_actor(session: str) -> str:
    """What Ray knows the spawner of that session by."""
    return f"spawner-{session}"


def agent_actor(name: str) -> str:
    """What Ray knows that agent by."""
    return f"agent-{name}"


def new_agent(session: str, node: Node) -> str:
    """A name for another agent of that node."""
    return f"{session}-{node.node_id[:16]}-{uuid.uuid4().hex[:8]}"


def find(actor: str) -> Any:
    """The handle of the actor that Ray knows by this name; None: there is none any more."""
    try:
        return ray.get_actor(actor, NAMESPACE)
    except ValueError:
        return None


def is_restarted() -> bool:
    """Whether Ray has started the actor that this runs in before."""
    with warnings.catch_warnings():  # Ray's code warns, on the driver's screen, about Ray's code
        warnings.simplefilter("ignore", DeprecationWarning)
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)
