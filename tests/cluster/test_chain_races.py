"""Ends that race with requests, deaths and the close, through the whole chain: one answer each, and it is true."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
import ray
from lasting import lasting_session, nothing_left_at_last
from node_rig import until
from ray_rig import DEADLINE, Nodes, ended, pid_of, procs_of, rest_of, shell
from victims import Victims, is_there

from ray_launcher import Exited, ExitPort, Failed, ProcExitResult, RayProcLauncher, Signaled

__all__ = ["lasting_session", "nothing_left_at_last"]

#: What a proc does by itself, having written a line to the file $1, and how it may end besides by KILL.
LIVES: dict[str, set[object]] = {
    "exit 7": {Exited(7), Signaled(signal.SIGTERM)},
    "exec sleep 0.05": {Exited(0), Signaled(signal.SIGTERM)},
    "trap 'exit 5' TERM; sleep 0.1 & wait; exit 7": {Exited(5), Exited(7), Signaled(signal.SIGTERM)},
    "trap '' TERM; sleep 0.1; exit 7": {Exited(7), Signaled(signal.SIGTERM)},
}
UNSTARTED = "ended on request before it was started"


class Races:
    """Procs with lives of their own, requests at random; each port's answers are counted."""

    def __init__(self, launcher: RayProcLauncher, nodes: Nodes, path: Path, seed: int) -> None:
        self._launcher, self._path = launcher, path
        self._places = [nodes.on("a"), nodes.on("b")]
        self._chance = random.Random(seed)  # noqa: S311  # noise, no secret
        self._scripts: dict[str, str] = {}
        self._ports: dict[str, ExitPort] = {}
        self._told: dict[str, list[ProcExitResult]] = {}
        self._killed: set[str] = set()
        self._requested: set[str] = set()

    def launch(self, count: int) -> None:
        for _ in range(count):
            proc_id = f"race-{len(self._scripts)}"
            script = self._chance.choice(list(LIVES))
            self._scripts[proc_id], self._told[proc_id] = script, []
            opts = shell(f"echo x >> {self._path}/{proc_id}; {script}", self._chance.choice(self._places))
            port = self._ports[proc_id] = self._launcher.launch(proc_id, opts).exit_port
            port.add_done_callback(self._told[proc_id].append)
            if self._chance.random() < 0.5:
                self.request(self._chance.choice(list(self._scripts)))

    def request(self, proc_id: str) -> None:
        self._requested.add(proc_id)
        timeout = self._chance.choice([None, 0.0, 0.05, 9999.0])
        if timeout is None:
            self._launcher.kill(proc_id)
        else:
            self._launcher.terminate(proc_id, timeout)
        if timeout != 9999.0:
            self._killed.add(proc_id)

    def check(self) -> None:
        for proc_id, port in self._ports.items():
            kind = ended(port).kind
            started = (self._path / proc_id).read_text().count("x") if (self._path / proc_id).exists() else 0
            allowed = {*LIVES[self._scripts[proc_id]]}
            if proc_id in self._killed:
                allowed.add(Signaled(signal.SIGKILL))
            never = proc_id in self._requested and kind == Failed(UNSTARTED) and not started
            assert kind in allowed or never, f"{proc_id}: {self._scripts[proc_id]}: {kind}"
            assert started <= 1, proc_id
        until(lambda: all(self._told.values()), "every callback has been called", DEADLINE)
        assert {len(results) for results in self._told.values()} == {1}


@pytest.mark.parametrize("victims", ["nobody", "spawner", "agent", "agent and spawner"])
def test_ends_that_race_with_requests_and_deaths_are_told_once(
    session: RayProcLauncher, nodes: Nodes, tmp_path: Path, victims: str
) -> None:
    node_id = nodes.ids()["a"]
    assert ended(session.launch("warm", shell("exit", nodes.on("a"))).exit_port).ok
    is_there(session, node_id)
    layers = Victims(session, node_id)
    races = Races(session, nodes, tmp_path, seed=len(victims))
    races.launch(40)
    if victims != "nobody":
        layers.strike(victims)
    races.launch(40)
    races.check()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ends_race_a_thousand_times(session: RayProcLauncher, nodes: Nodes, tmp_path: Path) -> None:
    for seed in range(10):
        path = tmp_path / str(seed)
        path.mkdir()
        test_ends_that_race_with_requests_and_deaths_are_told_once(
            session, nodes, path, ["nobody", "spawner", "agent", "agent and spawner"][seed % 4]
        )


def test_ends_that_race_with_the_close_are_told_once(nodes: Nodes, tmp_path: Path) -> None:
    with RayProcLauncher(grace=1) as launcher:
        races = Races(launcher, nodes, tmp_path, seed=7)
        races.launch(60)
        races._killed.update(races._scripts)
        races._requested.update(races._scripts)
        launcher.close(0.1)
        races.check()


def test_an_id_is_free_at_once_though_the_spawner_is_started_again(session: RayProcLauncher, nodes: Nodes) -> None:
    for code in range(4):
        port = session.launch("reused", shell(f"exit {code}", nodes.on("a"))).exit_port
        if code % 2:
            os.kill(ray.get(session._spawner.facts.remote())["pid"], signal.SIGKILL)
        assert ended(port).kind == Exited(code)


def test_an_id_stays_taken_though_the_spawner_is_started_again(session: RayProcLauncher, nodes: Nodes) -> None:
    first = session.launch("taken", shell("exec sleep 9999", nodes.on("a"))).exit_port
    pid_of(session, "taken")
    os.kill(ray.get(session._spawner.facts.remote())["pid"], signal.SIGKILL)
    second = session.launch("taken", shell("exit", nodes.on("b"))).exit_port
    assert "already running" in str(ended(second))
    session.kill("taken")
    assert ended(first).kind == Signaled(signal.SIGKILL)


def test_a_kill_holds_though_the_spawner_is_killed_before_the_launch_has_come_anywhere(
    session: RayProcLauncher, nodes: Nodes
) -> None:
    pid = ray.get(session._spawner.facts.remote())["pid"]
    for times in range(3):
        port = session.launch("never", shell("exec sleep 9999", nodes.on("a"))).exit_port
        session.kill("never")
        if times == 0:
            os.kill(pid, signal.SIGKILL)
        assert ended(port).kind in {Signaled(signal.SIGKILL), Failed(UNSTARTED)}


def test_a_spawner_gone_for_good_closes_every_port_whatever_its_proc_does(nodes: Nodes, tmp_path: Path) -> None:
    with RayProcLauncher(grace=1) as launcher:
        lives = {"running": "exec sleep 9999", "terminating": "trap 'echo got TERM' TERM; while :; do sleep 0.05; done"}
        opts = {name: shell(f"echo up; {script}", nodes.on("a")) for name, script in lives.items()}
        ports = {name: started.exit_port for name, started in launcher.launch_many(opts).items()}
        terminating = launcher.logs("terminating", follow=True)
        assert next(terminating) == "up"
        launcher.terminate("terminating", 9999)
        assert next(terminating) == "got TERM"
        starting = launcher.launch_many({f"starting-{n}": shell("exec sleep 9999", nodes.on("a")) for n in range(20)})
        ports |= {name: started.exit_port for name, started in starting.items()}
        ray.kill(launcher._spawner)
        for name, port in ports.items():
            assert str(ended(port)).startswith("failed: exit port closed ("), name
        until(lambda: not procs_of(launcher.session), "its procs are gone", DEADLINE)
        until(lambda: not rest_of(launcher.session), "agents and supervisors are gone", DEADLINE)
