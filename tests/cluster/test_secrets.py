"""Secrets by file: for the proc alone, and gone with the last process of its tree, whoever is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from node_rig import until
from ray_rig import Nodes, agents_of, ended, runtime_directory, shell, starts_writing
from victims import kill_guard_and_supervisor, kill_supervisor

from ray_launcher import Exited, LaunchOptions, RayProcLauncher

SHOW = 'cd "$RAY_LAUNCHER_SECRETS" && stat -c "%a %U %n" . token && cat token'


def secret(script: str, nodes: Nodes) -> LaunchOptions:
    opts = shell(script, nodes.on("a"))
    return LaunchOptions(program=opts.program, args=opts.args, placement=opts.placement, secrets={"token": "s3cret"})


def left(launcher: RayProcLauncher) -> list[Path]:
    return list(runtime_directory().glob(f"{launcher.session}-*/secrets/*"))


def test_a_secret_is_a_file_for_this_user_alone(shared: RayProcLauncher, nodes: Nodes) -> None:
    port = shared.launch("a", secret(f"{SHOW}; exit 3", nodes)).exit_port
    assert ended(port).kind == Exited(3)
    user = Path("/proc/self").owner()
    assert list(shared.logs("a")) == [f"700 {user} .", f"600 {user} token", "s3cret"]


def test_it_is_gone_with_its_proc(shared: RayProcLauncher, nodes: Nodes) -> None:
    ended(shared.launch("a", secret("exit", nodes)).exit_port)
    until(lambda: left(shared) == [], "it is gone")


def test_it_is_there_as_long_as_anything_of_the_tree(shared: RayProcLauncher, nodes: Nodes) -> None:
    script = 'trap "" TERM; (sleep 1.5; cat "$RAY_LAUNCHER_SECRETS/token") & exit 3'
    assert ended(shared.launch("a", secret(script, nodes)).exit_port).kind == Exited(3)
    assert len(left(shared)) == 1
    until(lambda: left(shared) == [], "it is gone")
    assert list(shared.logs("a")) == ["s3cret"]


def test_it_goes_though_the_agent_was_killed_meanwhile(launcher: RayProcLauncher, nodes: Nodes) -> None:
    port = launcher.launch("a", secret("echo up; exec sleep 9999", nodes)).exit_port
    starts_writing(launcher, "a")
    [agent] = agents_of(launcher.session)
    os.kill(ray.get(agent.info.remote())["pid"], signal.SIGKILL)
    launcher.kill("a")
    ended(port)
    until(lambda: left(launcher) == [], "it is gone")


@pytest.mark.parametrize("kill", [kill_supervisor, kill_guard_and_supervisor])
def test_it_goes_with_the_supervisor(launcher: RayProcLauncher, nodes: Nodes, kill: Callable[[str, str], None]) -> None:
    port = launcher.launch("a", secret("echo up; exec sleep 9999", nodes)).exit_port
    starts_writing(launcher, "a")
    kill(launcher.session, nodes.ids()["a"])
    ended(port)
    until(lambda: left(launcher) == [], "it is gone")


def test_it_goes_with_the_session(launcher: RayProcLauncher, nodes: Nodes) -> None:
    launcher.launch("a", secret("echo up; exec sleep 9999", nodes))
    starts_writing(launcher, "a")
    launcher.close(0)
    assert left(launcher) == []


@pytest.mark.parametrize(
    "secrets, error, text",
    [
        (["token"], TypeError, "must be a mapping of names to bytes"),
        ({1: "x"}, TypeError, "must have names that are str"),
        ({"../up": "x"}, ValueError, "use letters, digits"),
        ({"": "x"}, ValueError, "use letters, digits"),
        ({"token": 1}, TypeError, "must be bytes or str, not int"),
        ({"token": bytes((1 << 20) + 1)}, ValueError, "more than 1 MiB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_secrets_are_refused(secrets: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        LaunchOptions(program="true", secrets=secrets)  # type: ignore[arg-type]


def test_secrets_are_not_shown() -> None:
    assert "s3cret" not in repr(LaunchOptions(program="true", secrets={"token": "s3cret"}))
