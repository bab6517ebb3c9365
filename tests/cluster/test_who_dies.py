"""The table of who may die: victim by moment, what every port says, and what is gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lasting import lasting_session, nothing_left_at_last
from node_rig import running, until
from ray_rig import DEADLINE, Nodes, ended, pid_of, procs_of, shell, supervisors_of
from victims import Victims, is_there

from ray_launcher import Exited, ExitPort, Failed, LaunchOptions, ProcExitResult, RayProcLauncher, Signaled
from ray_launcher.cluster.keeper import LOST

__all__ = ["lasting_session", "nothing_left_at_last"]

pytestmark = pytest.mark.timeout(180)

#: Those whose death no proc notices.
ABOVE = ["agent", "agent, as Ray ends it", "spawner", "agent and spawner", "supervisor, stopped for a while"]
#: Those that take their procs along, and what each port may say then.
BELOW: dict[str, set[object]] = {
    "supervisor": {Failed(LOST)},
    "guard and supervisor": {Failed(LOST)},
    "agent, guard and supervisor": {Failed(LOST)},
    "guard": {Signaled(signal.SIGTERM), Signaled(signal.SIGKILL)},
    "supervisor, asked to end": {Signaled(signal.SIGTERM), Signaled(signal.SIGKILL)},
}
#: What a launch may say besides whose supervisor ends or dies as it comes.
UNSTARTED = ("the node's supervisor is ending", "no supervisor on the node", "node ", LOST)
STARTS = 20
#: Victims that say little more than the others, and the one moment at which they are not left to `-m slow`.
RARE = {
    "agent, as Ray ends it": "running",
    "agent and spawner": "starting",
    "supervisor, stopped for a while": "terminating",
    "guard and supervisor": "running",
    "agent, guard and supervisor": "starting",
    "guard": "terminating",
    "supervisor, asked to end": "exiting",
}


def rows(victims: Iterable[str], moment: str) -> list[Any]:
    rare = {victim for victim in victims if RARE.get(victim, moment) != moment}
    return [pytest.param(victim, marks=[pytest.mark.slow] if victim in rare else []) for victim in victims]


class Scene:
    """One session, one node, files that procs write to, and how often each port has resolved."""

    def __init__(self, launcher: RayProcLauncher, node_id: str, nodes: Nodes, path: Path) -> None:
        self.launcher, self.path = launcher, path
        self.at = nodes.on("a")
        self.results: dict[str, list[ProcExitResult]] = {}
        assert ended(self.launch("warm", "exit")).ok
        is_there(launcher, node_id)
        self.victims = Victims(launcher, node_id)

    def options(self, name: str, script: str) -> LaunchOptions:
        """A script that notes in a file of its own that it has been started, and its pid."""
        return shell(f"echo $$ >> {self.path}/{name}.started; {script}", self.at)

    def launch(self, name: str, script: str) -> ExitPort:
        return self.watch(name, self.launcher.launch(name, self.options(name, script)).exit_port)

    def watch(self, name: str, port: ExitPort) -> ExitPort:
        self.results[name] = []
        port.add_done_callback(self.results[name].append)
        return port

    def starts(self, name: str) -> list[int]:
        """The pids with which it was started."""
        try:
            return [int(pid) for pid in (self.path / f"{name}.started").read_text().split()]
        except FileNotFoundError:
            return []

    def has_written(self, name: str) -> None:
        until((self.path / name).exists, f"{name} is there", DEADLINE)

    def serves(self) -> None:
        """The next launch works."""
        self.victims.relent()
        assert ended(self.launch("next", "exit 3")).returncode == 3

    def check(self) -> None:
        """The same, and each port has resolved once."""
        self.serves()
        until(lambda: all(self.results.values()), "every callback has been called", DEADLINE)
        assert {name: len(results) for name, results in self.results.items()} == dict.fromkeys(self.results, 1)

    def nothing_runs(self) -> None:
        until(lambda: not procs_of(self.launcher.session), "no proc is left", DEADLINE)


@pytest.fixture
def scene(session: RayProcLauncher, nodes: Nodes, tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(session, nodes.ids()["a"], nodes, tmp_path)
    yield scene
    scene.victims.relent()
    for name, results in scene.results.items():
        if not results:
            session.kill(name)


def run(scene: Scene) -> tuple[ExitPort, int]:
    """A proc that runs until the file `go` is there, and its pid."""
    script = (
        f"touch {scene.path}/ready; while [ ! -e {scene.path}/go ]; do sleep 0.02; done; echo last words >&2; exit 5"
    )
    port = scene.launch("runs", script)
    scene.has_written("ready")
    return port, scene.starts("runs")[0]


# -- above the procs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", rows(ABOVE, "starting"))
def test_starting_each_is_started_once_whoever_dies_above(scene: Scene, victim: str) -> None:
    names = [f"starts-{number}" for number in range(STARTS)]
    launched = scene.launcher.launch_many({name: scene.options(name, "exit 7") for name in names})
    scene.victims.strike(victim)
    ports = [scene.watch(name, result.exit_port) for name, result in launched.items()]
    if "stopped" in victim:
        scene.victims.relent()
    assert {ended(port).kind for port in ports} == {Exited(7)}
    assert {name: len(scene.starts(name)) for name in names} == dict.fromkeys(names, 1)
    scene.check()


@pytest.mark.parametrize("victim", rows(ABOVE, "running"))
def test_running_a_proc_goes_on_whoever_dies_above(scene: Scene, victim: str) -> None:
    port, pid = run(scene)
    scene.victims.strike(victim)
    scene.serves()
    assert running(pid)
    assert not port.done()
    (scene.path / "go").touch()
    assert ended(port) == ProcExitResult(Exited(5), ["last words"])
    assert scene.starts("runs") == [pid]
    scene.check()


@pytest.mark.parametrize("victim", rows(ABOVE, "terminating"))
def test_terminating_the_escalation_comes_whoever_dies_above(scene: Scene, victim: str) -> None:
    script = f"trap 'touch {scene.path}/termed' TERM; touch {scene.path}/ready; while :; do sleep 0.02; done"
    port = scene.launch("stubborn", script)
    scene.has_written("ready")
    scene.launcher.terminate("stubborn", 1.5)
    scene.has_written("termed")
    scene.victims.strike(victim)
    if "stopped" in victim:
        scene.victims.relent()
    assert ended(port).kind == Signaled(signal.SIGKILL)
    scene.check()


@pytest.mark.parametrize("victim", rows(ABOVE, "exiting"))
def test_exiting_the_exit_arrives_whoever_is_dead_above(scene: Scene, victim: str) -> None:
    port, _ = run(scene)
    scene.victims.strike(victim)
    (scene.path / "go").touch()
    if "stopped" in victim:
        scene.victims.relent()
    assert ended(port) == ProcExitResult(Exited(5), ["last words"])
    scene.check()


# -- what owns the procs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", rows(BELOW, "starting"))
def test_starting_none_is_started_twice_when_the_supervisor_goes(scene: Scene, victim: str) -> None:
    names = [f"starts-{number}" for number in range(STARTS)]
    launched = scene.launcher.launch_many({name: scene.options(name, "exec sleep 9999") for name in names})
    scene.victims.strike(victim)
    ports = {name: scene.watch(name, result.exit_port) for name, result in launched.items()}
    scene.victims.are_gone()
    if "agent" in victim:  # the next launch may have gone to a dead one, and nobody can tell how far it came
        assert ended(scene.launch("noticed", "exit 3")).kind in {Exited(3), Failed(LOST)}
    scene.serves()
    for name, port in ports.items():
        assert len(scene.starts(name)) <= 1
        if port.done():
            kind = port.wait().kind
            assert kind in BELOW[victim] or (isinstance(kind, Failed) and kind.reason.startswith(UNSTARTED)), kind
        else:  # it came to the next supervisor
            scene.launcher.kill(name)
            assert ended(port).kind == Signaled(signal.SIGKILL)
    scene.nothing_runs()
    scene.victims.are_gone()
    scene.check()


@pytest.mark.parametrize("victim", rows(BELOW, "running"))
def test_running_a_proc_goes_with_its_supervisor_escapees_too(scene: Scene, victim: str) -> None:
    port = scene.launch("tree", f"setsid sh -c 'setsid sleep 9999 & wait' & touch {scene.path}/ready; exec sleep 9999")
    scene.has_written("ready")
    left: list[dict[int, str]] = []
    port._future().add_done_callback(lambda _: left.append(procs_of(scene.launcher.session)))
    scene.victims.strike(victim)
    assert ended(port).kind in BELOW[victim]
    if BELOW[victim] == {Failed(LOST)}:  # what is reported lost is dead by then
        assert until(lambda: left, "the port has been looked at") == [{}]
    scene.nothing_runs()
    scene.victims.are_gone()
    scene.check()


@pytest.mark.parametrize("victim", rows(BELOW, "terminating"))
def test_terminating_a_proc_that_heeds_no_term_goes_with_its_supervisor(scene: Scene, victim: str) -> None:
    port = scene.launch(
        "stubborn", f"trap 'touch {scene.path}/termed' TERM; touch {scene.path}/ready; while :; do sleep 0.02; done"
    )
    scene.has_written("ready")
    scene.launcher.terminate("stubborn", 9999)
    scene.has_written("termed")
    scene.victims.strike(victim)
    assert ended(port).kind in BELOW[victim]
    scene.nothing_runs()
    scene.victims.are_gone()
    scene.check()


@pytest.mark.parametrize("victim", rows(BELOW, "exiting"))
def test_exiting_the_port_tells_the_exit_or_the_loss_once(scene: Scene, victim: str) -> None:
    port, _ = run(scene)
    (scene.path / "go").touch()
    scene.victims.strike(victim)
    assert ended(port).kind in {Exited(5), *BELOW[victim]}
    scene.nothing_runs()
    scene.victims.are_gone()
    scene.check()


# -- procs, and again and again -------------------------------------------------------------------------------------


def test_a_leader_that_is_killed_is_reported_and_nobody_else_notices(scene: Scene) -> None:
    port, pid = run(scene)
    other = scene.launch("other", "exec sleep 9999")
    pid_of(scene.launcher, "other")  # its node may have needed a supervisor
    supervisors = supervisors_of(scene.launcher.session)
    os.kill(pid, signal.SIGKILL)
    assert ended(port).kind == Signaled(signal.SIGKILL)
    assert supervisors_of(scene.launcher.session) == supervisors
    assert not other.done()
    scene.launcher.kill("other")
    scene.check()


def test_a_grandchild_that_is_killed_is_no_end_of_its_proc(scene: Scene) -> None:
    script = f"setsid sh -c 'echo $$ > {scene.path}/child; exec sleep 9999' & wait; exit 6"
    port = scene.launch("parent", script)
    until(lambda: (scene.path / "child").exists() and (scene.path / "child").read_text().strip(), "the child", DEADLINE)
    os.kill(int((scene.path / "child").read_text()), signal.SIGKILL)
    assert ended(port).kind == Exited(6)
    scene.check()


@pytest.mark.parametrize("victim, times", [("spawner", 3), ("agent", 3)])
def test_killed_again_and_again_every_exit_arrives_once(scene: Scene, nodes: Nodes, victim: str, times: int) -> None:
    again_and_again(scene, nodes, victim, times)


@pytest.mark.slow
@pytest.mark.parametrize("victim, times", [("spawner", 20), ("agent", 20)])
def test_killed_twenty_times_every_exit_arrives_once(scene: Scene, nodes: Nodes, victim: str, times: int) -> None:
    again_and_again(scene, nodes, victim, times)


def again_and_again(scene: Scene, nodes: Nodes, victim: str, times: int) -> None:
    lasting, pid = run(scene)
    for number in range(times):
        is_there(scene.launcher, nodes.ids()["a"])
        victims = Victims(scene.launcher, nodes.ids()["a"])  # now: a child that is being started looks like its parent
        names = [f"{number}-{index}" for index in range(5)]
        ports = [scene.launch(name, f"sleep 0.{index}; exit {index}") for index, name in enumerate(names)]
        victims.strike(victim)
        assert [ended(port).kind for port in ports] == [Exited(index) for index in range(5)]
        assert [len(scene.starts(name)) for name in names] == [1] * 5
    assert running(pid)
    (scene.path / "go").touch()
    assert ended(lasting).kind == Exited(5)
    scene.check()
