"""The who-dies table: victim by signal by moment. Each blow hits procs that start, run, terminate and exit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from blows import PATIENCE, Blow, end, strike
from node_rig import running, until
from ray_rig import DEADLINE, Nodes, ended, procs_of, python, rest_of, shell, slowness
from victims import agent_on, kill_and_await, spawner_of

from ray_launcher import Exited, Failed, LaunchResult, RayProcLauncher, Signaled

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
def test_nothing_of_a_lost_supervisor_stays(blow: Blow) -> None:
    until(
        lambda: "spare log file" not in str(rest_of(blow.launcher.session)),
        "no log file is set aside by the dead",
        DEADLINE,
    )


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


# -- the proc itself ------------------------------------------------------------------------------------------------

#: A leader, a child, and one that has escaped with setsid; it prints the pids of all.
_TREE = """
import os, sys, time
child = os.fork() or time.sleep(9999)
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    escaped = os.fork()
    if escaped:
        os._exit(0)
    os.write(write, b"%d" % os.getpid())
    time.sleep(9999)
print(os.getpid(), child, int(os.read(read, 20)), flush=True)
time.sleep(9999)
"""


def _tree(session: RayProcLauncher, nodes: Nodes, proc_id: str) -> tuple[LaunchResult, list[int]]:
    proc = session.launch(proc_id, python(_TREE, nodes.on("a")))
    return proc, list(map(int, next(session.logs(proc_id, follow=True)).split()))


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_leader_that_is_killed_takes_its_tree_along_and_nobody_else(
    session: RayProcLauncher, nodes: Nodes, signum: signal.Signals
) -> None:
    proc, pids = _tree(session, nodes, "killed")
    bystander, others = _tree(session, nodes, "bystander")
    os.kill(pids[0], signum)
    assert ended(proc.exit_port).kind == Signaled(signum, False)
    until(lambda: not any(map(running, pids)), "its tree is gone", DEADLINE)
    assert all(map(running, others))
    session.kill("bystander")
    ended(bystander.exit_port)


@pytest.mark.parametrize("member", [1, 2], ids=["child", "escaped"])
def test_a_descendant_that_is_killed_is_nobodys_end(session: RayProcLauncher, nodes: Nodes, member: int) -> None:
    proc, pids = _tree(session, nodes, "goes on")
    kill_and_await(pids[member])
    assert ended(session.launch("after", shell("exit", nodes.on("a"))).exit_port).ok
    assert running(pids[0])
    assert not proc.exit_port.done()
    session.kill("goes on")
    assert ended(proc.exit_port).kind == Signaled(signal.SIGKILL, False)


def test_a_stopped_proc_is_no_end_and_can_be_terminated(session: RayProcLauncher, nodes: Nodes) -> None:
    proc, pids = _tree(session, nodes, "stopped")
    os.kill(pids[0], signal.SIGSTOP)
    assert ended(session.launch("after", shell("exit", nodes.on("a"))).exit_port).ok
    assert not proc.exit_port.done()
    session.terminate("stopped", 9999)
    assert ended(proc.exit_port).kind == Signaled(signal.SIGTERM, False)


# -- a spawner that is gone for good --------------------------------------------------------------------------------


def test_a_spawner_gone_for_good_closes_every_port_and_takes_the_procs_along(nodes: Nodes, tmp_path: Path) -> None:
    with RayProcLauncher(grace=1, lease=10) as launcher:
        blow = Blow(launcher, {}, tmp_path)
        blow.launch({proc_id: blow.options(nodes, proc_id) for proc_id in ("running", "terminating")})
        for proc_id in ("running", "terminating"):
            blow.has_said(proc_id, 1)
        launcher.terminate("terminating", 9999)
        blow.has_said("terminating", 2)
        blow.launch({proc_id: blow.options(nodes, proc_id, str(code)) for proc_id, code in blow.crowd().items()})
        ray.kill(launcher._spawner)
        blow.wait_told(*blow.told)
        for proc_id in blow.told:
            kind = blow.result(proc_id).kind
            assert isinstance(kind, Exited) or str(kind).startswith("failed: exit port closed ("), kind
            assert blow.starts(proc_id) <= 1
        until(lambda: not procs_of(launcher.session), "its procs are gone", DEADLINE)
        until(lambda: not rest_of(launcher.session), "agents and supervisors are gone", DEADLINE)


# -- again and again ------------------------------------------------------------------------------------------------


def _kill_again_and_again(
    session: RayProcLauncher, nodes: Nodes, files: Path, pid: Callable[[], int], times: int
) -> None:
    blow = Blow(session, {}, files)
    blow.launch({"running": blow.options(nodes, "running")})
    leader = int(blow.has_said("running", 1)[0])
    for round_ in range(times):
        kill_and_await(pid())
        blow.launch({f"starting {round_}": blow.options(nodes, f"starting {round_}", str(round_))})
        if round_ % 2:  # else the next blow comes while this one is on its way
            blow.wait_told(f"starting {round_}")
    blow.wait_told(*(f"starting {round_}" for round_ in range(times)))
    for round_ in range(times):
        assert blow.result(f"starting {round_}").kind == Exited(round_)
        assert blow.starts(f"starting {round_}") == 1
    assert running(leader)
    assert blow.starts("running") == 1
    assert blow.told["running"] == []
    end(blow)


_times = pytest.mark.parametrize("times", [4, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])


@_times
def test_a_spawner_may_be_killed_again_and_again(
    session: RayProcLauncher, nodes: Nodes, tmp_path: Path, times: int
) -> None:
    _kill_again_and_again(session, nodes, tmp_path, lambda: spawner_of(session), times)


@_times
def test_an_agent_may_be_killed_again_and_again(
    session: RayProcLauncher, nodes: Nodes, tmp_path: Path, times: int
) -> None:
    node_id = nodes.ids()["a"]
    _kill_again_and_again(session, nodes, tmp_path, lambda: int(agent_on(session.session, node_id)["pid"]), times)


def test_an_id_is_free_at_once_though_the_spawner_is_restarting(session: RayProcLauncher, nodes: Nodes) -> None:
    for code in range(5):
        port = session.launch("reused", shell(f"exit {code}", nodes.on("a"))).exit_port
        if code % 2:
            os.kill(spawner_of(session), signal.SIGKILL)
        assert ended(port).kind == Exited(code)


def test_a_kill_of_a_launch_that_has_not_started_holds_though_the_spawner_is_killed(
    session: RayProcLauncher, nodes: Nodes
) -> None:
    pid = spawner_of(session)
    port = session.launch("never", shell("sleep 9999", nodes.on("a"))).exit_port
    session.kill("never")
    os.kill(pid, signal.SIGKILL)
    kind = ended(port).kind
    assert kind == Signaled(signal.SIGKILL, False) or isinstance(kind, Failed)
    until(lambda: not procs_of(session.session), "it does not run", DEADLINE)
