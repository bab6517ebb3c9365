"""What a session tells of its procs, and signals to them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import datetime, timezone

import pytest
from node_rig import until
from ray_rig import DEADLINE, Nodes, ended, living, shell

from ray_launcher import LaunchOptions, Placement, ProcInfo, RayProcLauncher, Signaled, UnknownProcError

NOWHERE = Placement(label_selector={"zone": "nowhere"})


def info_of(launcher: RayProcLauncher, proc_id: str) -> ProcInfo:
    return next(info for info in launcher.procs() if info.proc_id == proc_id)


def test_a_running_proc_is_shown_with_its_node_pid_and_start(shared: RayProcLauncher, nodes: Nodes) -> None:
    before = datetime.now(timezone.utc)
    with living(shared, "runs", shell("echo $$; exec sleep 9999", nodes.on("a"))):
        pid = int(next(shared.logs("runs", follow=True)))
        until(lambda: info_of(shared, "runs").state == "RUNNING", "running", DEADLINE)
        info = info_of(shared, "runs")
    assert (info.pid, info.node_id) == (pid, nodes.ids()["a"])
    assert info.started_at is not None
    assert before <= info.started_at <= datetime.now(timezone.utc)


def test_a_proc_without_a_node_is_pending(shared: RayProcLauncher) -> None:
    with living(shared, "waits", shell("exit", NOWHERE)):
        info = info_of(shared, "waits")
    assert (info.state, info.node_id, info.pid) == ("PENDING", None, None)


def test_a_proc_that_was_asked_to_end_is_terminating(shared: RayProcLauncher) -> None:
    with living(shared, "stubborn", shell("trap '' TERM; echo READY; while :; do sleep 1; done", Placement())):
        next(shared.logs("stubborn", follow=True))
        shared.terminate("stubborn", float("inf"))
        assert info_of(shared, "stubborn").state == "TERMINATING"


def test_an_ended_proc_is_shown_with_its_result(shared: RayProcLauncher) -> None:
    result = ended(shared.launch("ends", shell("echo why >&2; exit 3", Placement())).exit_port)
    info = info_of(shared, "ends")
    assert (info.state, info.result) == ("EXITED", result)
    assert info.exited_at is not None


def test_an_id_that_runs_again_is_shown_once(shared: RayProcLauncher) -> None:
    ended(shared.launch("again", shell("exit", Placement())).exit_port)
    with living(shared, "again", shell("sleep 9999", Placement())):
        assert [info.state != "EXITED" for info in shared.procs() if info.proc_id == "again"] == [True]


def test_attach_gives_the_result_of_a_living_proc(shared: RayProcLauncher) -> None:
    with living(shared, "attached", shell("exec sleep 9999", Placement())):
        port = shared.attach("attached").exit_port
        shared.kill("attached")
        assert ended(port).returncode == -9


def test_attach_gives_the_result_of_an_ended_proc(shared: RayProcLauncher) -> None:
    result = ended(shared.launch("over", shell("exit 4", Placement())).exit_port)
    assert ended(shared.attach("over").exit_port) == result


def test_attach_refuses_an_unknown_id(shared: RayProcLauncher) -> None:
    with pytest.raises(UnknownProcError, match="no proc 'nobody'"):
        shared.attach("nobody")


def test_a_signal_reaches_the_grandchildren_too(shared: RayProcLauncher) -> None:
    script = "trap : USR1; sh -c 'trap \"echo got; exit\" USR1; echo READY; while :; do sleep 0.1; done' & wait; wait"
    with living(shared, "signalled", shell(script, Placement())):
        lines = shared.logs("signalled", follow=True)
        assert next(lines) == "READY"
        shared.signal("signalled", signal.SIGUSR1)
        assert next(lines) == "got"


def test_a_deadly_signal_is_the_result(shared: RayProcLauncher) -> None:
    port = shared.launch("dies", LaunchOptions(program="sleep", args=["9999"])).exit_port
    shared.signal("dies", signal.SIGINT)
    assert ended(port).kind == Signaled(signal.SIGINT, core_dumped=False)


def test_a_signal_to_an_unknown_or_ended_proc_is_nothing(shared: RayProcLauncher) -> None:
    ended(shared.launch("gone", shell("exit", Placement())).exit_port)
    for proc_id in ("gone", "nobody"):
        shared.signal(proc_id, signal.SIGKILL)
    assert info_of(shared, "gone").state == "EXITED"


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda it: it.signal("x", 0), ValueError, "signum must be a signal of this system"),
        (lambda it: it.signal("x", True), TypeError, "signum must be a signal number"),
        (lambda it: it.signal("", 9), ValueError, "proc_id"),
        (lambda it: it.attach(3), TypeError, "proc_id"),
    ],
)
def test_bad_arguments_are_refused(
    shared: RayProcLauncher, call: Callable[[RayProcLauncher], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call(shared)
