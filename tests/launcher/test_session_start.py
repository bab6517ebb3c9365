"""A session on the driver's own node: its agent is started with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from node_rig import until
from ray_rig import actors_of

from ray_launcher import RayProcLauncher


def _is_gone(session: str) -> bool:
    return not actors_of(session)


def test_the_agent_of_the_drivers_node_is_started_before_it_is_needed(cluster: str) -> None:
    with RayProcLauncher() as launcher:
        until(lambda: any(name.startswith("agent-") for name in actors_of(launcher.session)), "there is an agent")


def test_a_session_that_is_closed_at_once_leaves_no_actor(cluster: str) -> None:
    for _ in range(3):
        launcher = RayProcLauncher()
        launcher.close()
        until(partial(_is_gone, launcher.session), "its actors are gone")  # Ray ends them in its own time


def test_ray_says_nothing_on_the_screen_of_who_starts_a_session(driver: Callable[..., str]) -> None:
    printed = driver(
        """
import ray
from ray_launcher import *

ray.init(log_to_driver=False, logging_level=40)
with RayProcLauncher() as launcher:
    launcher.launch("a", LaunchOptions(program="true")).exit_port.wait()
"""
    )
    assert printed == ""
