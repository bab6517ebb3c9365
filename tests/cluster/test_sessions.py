"""Detached sessions: they outlive their drivers, any driver finds their procs and ends, and nothing of them is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import tempfile
from pathlib import Path

import pytest
import ray
from detached_rig import attached, kill_spawner
from node_rig import until
from ray_rig import DEADLINE, Driver, Nodes, ended, pid_of, ran, rest_of, shell

from ray_launcher import (
    Exited,
    Failed,
    LaunchError,
    ProcInfo,
    RayProcLauncher,
    Signaled,
    UnknownProcError,
    UnknownSessionError,
    list_sessions,
)

LAUNCH = """
import ray, sys
from ray_launcher import LaunchOptions, RayProcLauncher

ray.init(sys.argv[1], log_to_driver=False, logging_level="error")
launcher = RayProcLauncher(session=sys.argv[2], detached=True)
for script in sys.argv[3:]:
    launcher.launch(script, LaunchOptions(program="sh", args=["-c", script]))
launcher.close()
"""


def launch(nodes: Nodes, name: str, *scripts: str) -> None:
    """By a driver of its own, which has ended afterwards."""
    ran("-c", LAUNCH, nodes.address, name, *scripts)


def info_of(launcher: RayProcLauncher, proc_id: str) -> ProcInfo:
    [info] = [info for info in launcher.procs() if info.proc_id == proc_id]
    return info


def log_files(name: str) -> list[str]:
    found = Path(tempfile.gettempdir()).glob(f"ray/session_2*/logs/ray-launcher-{name}-*")
    names = []
    for path in found:
        with contextlib.suppress(FileNotFoundError):  # it is being removed
            names += [path.name] if path.stat().st_size else []
    return names


def test_procs_outlive_their_driver_and_are_ended_by_another(nodes: Nodes, name: str) -> None:
    launch(nodes, name, "sleep 9999")
    with attached(name) as launcher:
        port = launcher.attach("sleep 9999").exit_port
        pid_of(launcher, "sleep 9999")
        launcher.kill("sleep 9999")
        assert ended(port).kind == Signaled(9)


def test_an_end_while_nobody_was_attached_is_told_later(nodes: Nodes, name: str) -> None:
    launch(nodes, name, "echo last >&2; exit 7")
    launcher = attached(name)
    result = ended(launcher.attach("echo last >&2; exit 7").exit_port)
    assert result.kind == Exited(7)
    assert result.stderr_tail == ["last"]


def test_letting_go_of_a_session_does_not_end_it(name: str) -> None:
    with attached(name) as launcher:
        port = launcher.launch("a", shell("sleep 9999")).exit_port
        pid_of(launcher, "a")
    with pytest.raises(LaunchError, match="closed"):
        launcher.launch("b", shell("true"))
    assert not port.done()
    attached(name).kill("a")
    assert ended(port).kind == Signaled(9)


def test_a_launch_is_safe_when_its_launcher_lets_go(nodes: Nodes, name: str) -> None:
    """Of resources that are not there, it waits in the spawner alone."""
    driver = Driver(
        LAUNCH.replace('args=["-c", script])', 'args=["-c", script], placement=Placement(num_cpus=99))').replace(
            "import LaunchOptions", "import Placement, LaunchOptions"
        ),
        nodes.address,
        name,
        "true",
    )
    assert driver.finish() == (0, "")
    launcher = attached(name)
    assert info_of(launcher, "true").state == "PENDING"
    kill_spawner(name)
    assert info_of(launcher, "true").state == "PENDING"


def test_procs_live_and_ends_are_known_when_the_spawner_dies_with_nobody_attached(nodes: Nodes, name: str) -> None:
    launch(nodes, name, "sleep 9999", "exit 3")
    first = attached(name)
    assert ended(first.attach("exit 3").exit_port).kind == Exited(3)
    pid = pid_of(first, "sleep 9999")
    kill_spawner(name)
    launcher = attached(name)
    assert info_of(launcher, "sleep 9999").pid == pid
    assert ended(launcher.attach("exit 3").exit_port).kind == Exited(3)


def test_what_ends_while_the_spawner_is_down_is_remembered(nodes: Nodes, name: str) -> None:
    launch(nodes, name, "exec sleep 9999")
    pid = pid_of(attached(name), "exec sleep 9999")
    spawner = ray.get_actor(f"spawner-{name}", "ray_launcher")
    before = ray.get(spawner.facts.remote())["pid"]
    os.kill(before, signal.SIGKILL)
    os.kill(pid, signal.SIGTERM)
    assert ended(attached(name).attach("exec sleep 9999").exit_port).kind == Signaled(15)


def test_logs_of_the_ended_are_found_by_a_spawner_that_is_started_again(nodes: Nodes, name: str) -> None:
    launch(nodes, name, "echo out")
    launcher = attached(name)
    ended(launcher.attach("echo out").exit_port)
    kill_spawner(name)
    assert list(attached(name).logs("echo out")) == ["out"]


def test_end_ends_it_whoever_made_it(nodes: Nodes, name: str) -> None:
    launch(nodes, name, "sleep 9999")
    launcher = attached(name)
    port = launcher.attach("sleep 9999").exit_port
    pid_of(launcher, "sleep 9999")
    launcher.end(0)
    assert ended(port).kind in (Signaled(15), Signaled(9))
    assert rest_of(name) == []


def test_another_attached_launcher_hears_of_the_end_of_its_session(name: str) -> None:
    one, other = attached(name), attached(name)
    port = one.launch("a", shell("sleep 9999")).exit_port
    pid_of(one, "a")
    other.end(0)
    kind = ended(port).kind
    assert kind in (Signaled(15), Signaled(9)) or isinstance(kind, Failed)


def test_ids_are_unique_in_a_session_whoever_launches(name: str) -> None:
    one, other = attached(name), attached(name)
    one.launch("a", shell("sleep 9999"))
    until(lambda: info_of(one, "a").state == "RUNNING", "it runs", DEADLINE)
    second = ended(other.launch("a", shell("true")).exit_port)
    assert "already running" in str(second)


def test_a_session_that_is_not_detached_is_nobody_elses(launcher: RayProcLauncher) -> None:
    with pytest.raises(ValueError, match="exists already"):
        RayProcLauncher(session=launcher.session, detached=True)


def test_a_detached_session_wants_to_be_asked_for_as_such(name: str) -> None:
    attached(name).close()
    with pytest.raises(ValueError, match="detached=True"):
        RayProcLauncher(session=name)


def test_another_runtime_env_than_that_of_the_session_is_refused(name: str) -> None:
    RayProcLauncher(session=name, detached=True, runtime_env={"env_vars": {"A": "1"}}).close()
    RayProcLauncher(session=name, detached=True, runtime_env={"env_vars": {"A": "1"}}).close()
    with pytest.raises(ValueError, match="runtime_env"):
        RayProcLauncher(session=name, detached=True, runtime_env={"env_vars": {"A": "2"}})


def test_the_last_ends_are_remembered_and_no_more(name: str) -> None:
    launcher = RayProcLauncher(session=name, detached=True, history=3)
    for number in range(5):
        ended(launcher.launch(str(number), shell(f"exit {number}")).exit_port)
    assert [info.proc_id for info in launcher.procs()] == ["2", "3", "4"]
    kill_spawner(name)
    assert [info.proc_id for info in launcher.procs()] == ["2", "3", "4"]
    with pytest.raises(UnknownProcError):
        launcher.attach("0")


def test_sessions_are_listed_with_what_they_have(name: str, shared: RayProcLauncher) -> None:
    launcher = attached(name)
    ended(launcher.launch("a", shell("exit")).exit_port)
    found = {summary.name: summary for summary in list_sessions()}
    assert (found[name].detached, found[shared.session].detached) == (True, False)
    assert found[name].counts == {"EXITED": 1}


@pytest.mark.parametrize("history", [0, 100_001])
def test_a_history_of_no_sensible_size_is_refused(nodes: Nodes, history: int) -> None:
    with pytest.raises(ValueError, match="history is out of range"):
        RayProcLauncher(history=history)


def test_what_is_to_be_forgotten_is_forgotten_with_its_logs(name: str) -> None:
    launcher = attached(name)
    ended(launcher.launch("kept", shell("echo kept")).exit_port)
    port = launcher.launch("gone", dataclasses.replace(shell("echo gone"), forget=True)).exit_port
    ended(port)
    until(lambda: [info.proc_id for info in launcher.procs()] == ["kept"], "it is forgotten")
    until(lambda: len(log_files(name)) == 1, "its log is gone")
    assert list(launcher.logs("kept")) == ["kept"]


def test_what_has_ended_can_be_removed_and_what_runs_cannot(name: str) -> None:
    launcher = attached(name)
    ended(launcher.launch("ended", shell("echo x")).exit_port)
    launcher.launch("runs", shell("sleep 9999"))
    pid_of(launcher, "runs")
    assert launcher.remove("ended", "runs", "unknown") == ["runs", "unknown"]
    assert [info.proc_id for info in launcher.procs()] == ["runs"]
    assert log_files(name) == []


def test_a_launcher_that_was_found_sees_and_ends_procs_of_another_driver(launcher: RayProcLauncher) -> None:
    port = launcher.launch("a", shell("sleep 9999")).exit_port
    pid_of(launcher, "a")
    with RayProcLauncher.find(launcher.session) as found:
        assert info_of(found, "a").state == "RUNNING"
        found.terminate("a", 5)
    assert ended(port).kind == Signaled(15)
    assert launcher.launch("b", shell("exit 4")).exit_port.wait(DEADLINE).kind == Exited(4)


def test_a_launcher_that_was_found_cannot_launch_where_a_driver_runs_the_session(launcher: RayProcLauncher) -> None:
    with pytest.raises(LaunchError, match="not detached"):
        RayProcLauncher.find(launcher.session).launch("a", shell("true"))


def test_a_launcher_that_was_found_launches_in_a_detached_session(name: str) -> None:
    attached(name).close()
    assert ended(RayProcLauncher.find(name).launch("a", shell("exit 4")).exit_port).kind == Exited(4)


def test_a_session_that_is_not_there_is_not_found(nodes: Nodes) -> None:
    with pytest.raises(UnknownSessionError, match="'nowhere'"):
        RayProcLauncher.find("nowhere")


def test_what_fails_is_restarted_when_the_spawner_died_with_nobody_attached(nodes: Nodes, name: str) -> None:
    driver = LAUNCH.replace('args=["-c", script])', 'args=["-c", script], max_restarts=1, restart_delay=0)')
    ran("-c", driver, nodes.address, name, "exec sleep 9999")
    first = pid_of(attached(name), "exec sleep 9999")
    kill_spawner(name)
    os.kill(first, signal.SIGKILL)
    launcher = RayProcLauncher.find(name)
    until(lambda: info_of(launcher, "exec sleep 9999").restarts == 1, "it is restarted", DEADLINE)
    assert pid_of(launcher, "exec sleep 9999") != first
