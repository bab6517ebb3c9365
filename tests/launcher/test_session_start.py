"""A session on the driver's own node: its agent is started with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import ray
from node_rig import until
from ray_rig import actors_of, agents_of, ended, shell

from ray_launcher import RayProcLauncher
from ray_launcher.cluster.inquiries import ray_node


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


def test_its_actors_write_nothing_that_ray_would_show_on_a_screen(cluster: str) -> None:
    with RayProcLauncher() as launcher:
        assert ended(launcher.launch("a", shell("exit")).exit_port).ok
        about = [launcher._spawner.facts.remote(), *(agent.info.remote() for agent in agents_of(launcher.session))]
        pids = [facts["pid"] for facts in ray.get(about)]
    logs = [path for pid in pids for path in Path(ray_node().get_logs_dir_path()).glob(f"worker-*-{pid}.*")]
    lines = [line for path in logs for line in path.read_text().splitlines()]
    assert lines
    assert [line for line in lines if not line.startswith(":")] == []  # Ray's own marks
