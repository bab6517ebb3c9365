"""Messages of one launcher keep their order, in any number, over any spawner."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import ray

from ray_launcher import ActorProcLauncher, Failed, LaunchOptions, RayProcLauncher, Signaled
from ray_launcher.spawner import desk_of
from ray_launcher.testing import Call, FakeSpawner

DEADLINE = 60.0
OPTS = LaunchOptions(program="any")
KILLED = Signaled(signal.SIGKILL)


@pytest.fixture
def spawner(start: Callable[..., Any]) -> Any:
    return start(FakeSpawner)


def calls(spawner: Any) -> list[Call]:
    recorded: list[Call] = ray.get(spawner.calls.remote())
    return recorded


def test_of_3000_launches_each_with_its_kill_none_is_overtaken(spawner: Any) -> None:
    launcher = ActorProcLauncher(spawner)
    ports = []
    for index in range(3000):
        ports.append(launcher.launch(str(index), OPTS).exit_port)
        launcher.kill(str(index))
    assert {port.wait(DEADLINE).kind for port in ports} == {KILLED}
    pairs = [(call.verb, int(call.proc_id)) for call in calls(spawner)]
    assert pairs == [(verb, index) for index in range(3000) for verb in ("launch", "kill")]


def test_of_300_real_launches_each_with_its_kill_none_is_overtaken(cluster: str) -> None:
    program = LaunchOptions(program="sleep", args=["9999"])
    with RayProcLauncher() as launcher:
        ports = []
        for index in range(300):
            ports.append(launcher.launch(str(index), program).exit_port)
            launcher.kill(str(index))
        kinds = [port.wait(DEADLINE).kind for port in ports]
    ended_early = {kind for kind in kinds if kind != KILLED}
    assert all(isinstance(kind, Failed) and "before it was started" in kind.reason for kind in ended_early)


def test_batches_and_single_messages_share_one_order(spawner: Any) -> None:
    launcher = ActorProcLauncher(spawner)
    expected: list[tuple[str, str]] = []
    ports = []
    for index in range(100):
        batch = [f"{index}/{place}" for place in range(5)]
        ports += [launched.exit_port for launched in launcher.launch_many(dict.fromkeys(batch, OPTS)).values()]
        launcher.terminate(batch[-1], math.inf)
        ports.append(launcher.launch(f"{index}/single", OPTS).exit_port)
        for proc_id in [*batch[:-1], f"{index}/single"]:
            launcher.kill(proc_id)
        expected += [("launch", proc_id) for proc_id in batch]
        expected += [("terminate", batch[-1]), ("launch", f"{index}/single")]
        expected += [("kill", proc_id) for proc_id in [*batch[:-1], f"{index}/single"]]
    assert {port.wait(DEADLINE).kind for port in ports} == {KILLED, Signaled(signal.SIGTERM)}
    assert [(call.verb, call.proc_id) for call in calls(spawner)] == expected


def test_threads_that_share_a_launcher_keep_each_their_own_order(spawner: Any) -> None:
    launcher = ActorProcLauncher(spawner)
    ports: list[Any] = []

    def launch(name: str) -> None:
        for index in range(200):
            ports.append(launcher.launch(f"{name}/{index}", OPTS).exit_port)
            launcher.kill(f"{name}/{index}")

    threads = [threading.Thread(target=launch, args=(name,)) for name in "abcde"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {port.wait(DEADLINE).kind for port in ports} == {KILLED}
    recorded = [(call.verb, call.proc_id) for call in calls(spawner)]
    for name in "abcde":
        expected = [(verb, f"{name}/{index}") for index in range(200) for verb in ("launch", "kill")]
        assert [call for call in recorded if call[1].startswith(name)] == expected


def test_2000_launches_are_served_at_once(spawner: Any, until: Callable[[Callable[[], object], str], None]) -> None:
    launcher = ActorProcLauncher(spawner)
    ports = [launcher.launch(str(index), OPTS).exit_port for index in range(2000)]
    until(lambda: len(calls(spawner)) == 2000, "every launch has begun while none has ended")
    assert not any(port.done() for port in ports)
    assert launcher.active_procs == {str(index) for index in range(2000)}
    for index in range(2000):
        launcher.kill(str(index))
    assert {port.wait(DEADLINE).kind for port in ports} == {KILLED}


def test_two_launchers_of_one_spawner_do_not_wait_for_each_other(
    spawner: Any, until: Callable[[Callable[[], object], str], None]
) -> None:
    one, other = ActorProcLauncher(spawner), ActorProcLauncher(spawner)
    ports = [launcher.launch(f"{number}", OPTS).exit_port for number, launcher in enumerate([one, other, other, one])]
    until(lambda: len(calls(spawner)) == 4, "all have begun: no order holds between launchers")
    other.kill("0")  # a launch of another launcher's, by its name
    assert ports[0].wait(DEADLINE).kind == KILLED
    for number in (1, 2, 3):
        one.kill(str(number))
    assert {port.wait(DEADLINE).kind for port in ports[1:]} == {KILLED}


def test_who_only_asks_leaves_nothing_behind() -> None:
    spawner = FakeSpawner()
    asyncio.run(spawner.in_turn("asks once a second", -1))
    assert desk_of(spawner)._accounts == {}


def test_requests_meant_for_one_launch_never_reach_the_next_of_the_same_id(spawner: Any) -> None:
    launcher = ActorProcLauncher(spawner)
    for index in range(200):
        first = launcher.launch("again", OPTS).exit_port
        launcher.kill("again")
        launcher.kill("again")  # still meant for the first launch, which the one before ends
        launcher.terminate("again", 0)
        assert first.wait(DEADLINE).kind == KILLED
        second = launcher.launch("again", OPTS).exit_port
        ray.get(spawner.finish.remote(f"unknown {index}", None))
        launcher.launch(f"marker {index}", OPTS)
        launcher.kill(f"marker {index}")
        assert not second.done()
        ray.get(spawner.finish.remote("again", ValueError("ended by the test")))
        assert isinstance(second.wait(DEADLINE).kind, Failed)


def test_the_ports_launcher_knows_when_an_id_is_free_even_before_its_own_bookkeeping(spawner: Any) -> None:
    launcher = ActorProcLauncher(spawner)
    for _ in range(300):
        first = launcher.launch("again", OPTS).exit_port
        launcher.kill("again")
        first.wait(DEADLINE)
        again = launcher.launch("again", OPTS).exit_port
        launcher.kill("again")
        assert again.wait(DEADLINE).kind == KILLED
