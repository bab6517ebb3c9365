"""The who-dies table: victim by signal by moment. Each blow hits procs that start, run, terminate and exit."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from blows import PATIENCE, Blow, end, strike
from node_rig import running, until
from ray_rig import DEADLINE, Nodes, ended, procs_of, shell, slowness

from ray_launcher import Exited, Failed, RayProcLauncher, Signaled

#: Layers that come back, or are only stopped: nothing may be lost with them.
SURVIVED = (
    "spawner",
    "agent",
    "agent by Ray",
    "agent and spawner",
    "supervisor SIGSTOP",
)
#: Layers that take their procs with them.
FATAL = (
    "supervisor",
    "guard and supervisor",
    "agent and supervisor",
    "agent and guard and supervisor",
    "spawner and supervisor",
)
#: Those that tell the supervisor to end: it ends its procs in order.
ORDERLY = ("guard", "supervisor SIGTERM")
#: Why a launch may have come to nothing when its node's supervisor was lost.
_LOST = "the node's supervisor was lost, and the proc with it"
_REASONS = (_LOST, "no supervisor on the node", "the node's supervisor is ending")


@pytest.fixture(scope="module")
def session(nodes: Nodes) -> Iterator[RayProcLauncher]:
    with RayProcLauncher(grace=1, lease=10) as launcher:
        assert ended(launcher.launch("first", shell("exit", nodes.on("a"))).exit_port).ok
        yield launcher
        launcher.close(0)


@pytest.fixture(scope="module")
def blow(request: Any, session: RayProcLauncher, nodes: Nodes, tmp_path_factory: Any) -> Iterator[Blow]:
    victim: str = request.param
    assert ended(session.launch("before", shell("exit", nodes.on("a"))).exit_port).ok
    blow = strike(session, nodes, victim, tmp_path_factory.mktemp("blow"), survives=victim in SURVIVED)
    yield blow
    end(blow)


survived = pytest.mark.parametrize("blow", SURVIVED, indirect=True)
fatal = pytest.mark.parametrize("blow", FATAL, indirect=True)
orderly = pytest.mark.parametrize("blow", ORDERLY, indirect=True)
every = pytest.mark.parametrize("blow", [*SURVIVED, *FATAL, *ORDERLY], indirect=True)


# -- what is lost with nobody ---------------------------------------------------------------------------------------


@every
def test_the_next_launch_works(blow: Blow) -> None:
    assert blow.next is not None
    assert blow.next.kind == Exited(99)


@every
def test_each_port_tells_once(blow: Blow) -> None:
    assert {proc_id: len(told) for proc_id, told in blow.told.items() if proc_id != "running"} == {
        proc_id: 1 for proc_id in blow.told if proc_id != "running"
    }


# -- layers that come back ------------------------------------------------------------------------------------------


@survived
def test_procs_that_start_start_once_and_end_as_they_do(blow: Blow) -> None:
    assert {proc_id: blow.result(proc_id).kind for proc_id in blow.crowd()} == {
        proc_id: Exited(code) for proc_id, code in blow.crowd().items()
    }
    assert {proc_id: blow.starts(proc_id) for proc_id in blow.crowd()} == dict.fromkeys(blow.crowd(), 1)


@survived
def test_a_proc_that_runs_goes_on(blow: Blow) -> None:
    assert running(blow.pid)
    [info] = [info for info in blow.launcher.procs() if info.proc_id == "running"]
    assert (info.state, info.pid) == ("RUNNING", blow.pid)
    assert blow.starts("running") == 1
    assert blow.told["running"] == []


@survived
def test_a_proc_that_is_terminated_is_killed_when_its_time_is_up(blow: Blow) -> None:
    assert blow.result("terminating").kind == Signaled(signal.SIGKILL, False)
    assert PATIENCE <= blow.terminated_after < PATIENCE + slowness()


@survived
def test_a_proc_that_exits_meanwhile_is_heard(blow: Blow) -> None:
    assert blow.result("exiting").kind == Exited(7)
    assert blow.starts("exiting") == 1


# -- layers that take their procs with them -------------------------------------------------------------------------


@fatal
def test_the_procs_of_a_lost_supervisor_fail(blow: Blow) -> None:
    for proc_id in ("running", "terminating", "exiting"):
        assert blow.result(proc_id).kind == Failed(_LOST)
        assert blow.starts(proc_id) == 1


@fatal
def test_the_procs_of_a_lost_supervisor_are_gone(blow: Blow) -> None:
    until(lambda: not procs_of(blow.launcher.session), "nothing is left, whatever escaped", DEADLINE)


@fatal
def test_procs_that_start_meanwhile_end_as_they_do_or_fail(blow: Blow) -> None:
    for proc_id, code in blow.crowd().items():
        kind = blow.result(proc_id).kind
        if isinstance(kind, Failed):
            assert kind.reason.startswith(_REASONS)
        else:
            assert kind == Exited(code)
            assert blow.starts(proc_id) >= 1


@pytest.mark.parametrize("blow", ["supervisor", "guard and supervisor", "spawner and supervisor"], indirect=True)
def test_no_program_is_started_again(blow: Blow) -> None:
    assert max(blow.starts(proc_id) for proc_id in blow.crowd()) <= 1


@orderly
def test_a_supervisor_that_is_told_to_end_ends_its_procs(blow: Blow) -> None:
    assert blow.result("running").kind in (Signaled(signal.SIGTERM, False), Exited(128 + signal.SIGTERM))
    assert blow.result("terminating").kind == Signaled(signal.SIGKILL, False)
    for proc_id, code in blow.crowd().items():
        kind = blow.result(proc_id).kind
        assert kind in (Exited(code), Signaled(signal.SIGTERM, False)) or str(kind).startswith("failed: "), kind
        assert blow.starts(proc_id) <= 1
