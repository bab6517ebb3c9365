"""A proc's time limit: a signal ahead of it, TERM at its end, KILL a grace later, and a result that says so."""

from __future__ import annotations

import math
import os
import signal

import pytest
from node_rig import Rig, running

from ray_launcher.node.kinship import Proc
from ray_launcher.node.limits import Limits
from ray_launcher.node.procs import Procs
from ray_launcher.node.spec import Spec
from ray_launcher.node.timelimit import TimeLimit
from ray_launcher.node.timers import Timers

_STUBBORN = "trap '' TERM; echo $$; while :; do sleep 9999 & wait; done"
#: Seconds within which a shell has surely set its traps.
_TIME = 1.25
_REACHED = f"[ray_launcher] time limit of {_TIME} s reached: SIGTERM sent"


def _limits(time: float = _TIME, grace: float = math.inf, **more: float) -> Limits:
    return Limits(time=time, grace=grace, **more)  # type: ignore[arg-type]  # signum is an int


def test_at_its_time_limit_a_proc_gets_term_and_the_result_says_so(rig: Rig) -> None:
    end = rig.exit(rig.sh("echo words >&2; exec sleep 9999", limits=_limits()))
    assert (end.kind, end.value, end.tail) == ("signaled", signal.SIGTERM, ["words", _REACHED])


def test_a_proc_may_end_in_its_own_way_and_that_is_its_status(rig: Rig) -> None:
    end = rig.exit(rig.sh("trap 'exit 42' TERM; while :; do sleep 9999 & wait; done", limits=_limits()))
    assert (end.kind, end.value, end.tail) == ("exited", 42, [_REACHED])


@pytest.mark.parametrize("grace", [0, 0.2])
def test_a_proc_that_ignores_term_is_killed_a_grace_later(rig: Rig, grace: float) -> None:
    token = rig.sh("trap '' TERM; sleep 9999 & echo $!; wait", limits=_limits(grace=grace))
    child = rig.pids(token)
    end = rig.exit(token)
    assert (end.kind, end.value, end.tail) == ("signaled", signal.SIGKILL, [_REACHED])
    rig.gone(*child)


def test_the_whole_tree_gets_the_term(rig: Rig) -> None:
    script = "setsid sh -c 'trap \"echo heard; exit\" TERM; echo up; while :; do sleep 9999 & wait; done' & wait"
    token = rig.sh(script, limits=_limits())
    rig.exit(token)
    assert rig.words(token, 2) == ["up", "heard"]


def test_a_proc_that_ends_in_time_hears_and_says_nothing_of_its_limit(rig: Rig) -> None:
    early = rig.sh("exit 3", limits=_limits(signum=signal.SIGUSR1, lead=0.1))
    late = rig.sh("exec sleep 9999", limits=_limits())
    end = rig.exit(early)
    assert (end.kind, end.value, end.tail) == ("exited", 3, [])
    assert rig.exit(late).tail == [_REACHED]


def test_a_proc_without_a_limit_outlives_one_with(rig: Rig) -> None:
    free = rig.sh("echo $$; exec sleep 9999", limits=Limits(umask=0))
    (pid,) = rig.pids(free)
    rig.exit(rig.sh("exec sleep 9999", limits=_limits()))
    assert running(pid)
    rig.wire.send(b"kill", free)
    assert rig.exit(free).tail == []


@pytest.mark.parametrize("tail_lines", [0, 1])
def test_the_limits_line_comes_on_top_of_the_lines_that_were_asked_for(rig: Rig, tail_lines: int) -> None:
    script = "echo 1 >&2; echo 2 >&2; exec sleep 9999"
    assert rig.exit(rig.sh(script, tail_lines=tail_lines, limits=_limits())).tail == [*["2"][:tail_lines], _REACHED]


def test_the_limits_line_is_told_also_where_output_is_discarded_and_is_in_no_log(rig: Rig) -> None:
    assert rig.exit(rig.launch("/bin/sleep", "9999", stdio=False, limits=_limits())).tail == [_REACHED]
    token = rig.sh("echo out; echo err >&2; exec sleep 9999", limits=_limits())
    assert rig.exit(token).tail == ["err", _REACHED]
    assert (rig.output(token), rig.log(token, "err").read_bytes()) == (b"out\n", b"err\n")


def test_a_limit_that_is_reached_while_a_proc_is_being_terminated_sends_nothing_more(rig: Rig) -> None:
    token = rig.sh("trap 'echo term' TERM; echo $$; while :; do sleep 9999 & wait; done", limits=_limits(grace=0.3))
    rig.words(token)
    rig.wire.send(b"terminate", token, b"inf")
    end = rig.exit(token)
    assert (end.value, end.tail) == (signal.SIGKILL, [_REACHED.removesuffix(": SIGTERM sent")])
    assert rig.words(token, 2)[1:] == rig.output(token).decode().splitlines()[1:] == ["term"]


def test_a_limit_does_not_put_off_a_kill_that_is_due_earlier(rig: Rig) -> None:
    token = rig.sh(_STUBBORN, limits=_limits(9999.0))
    rig.words(token)
    rig.wire.send(b"terminate", token, b"0.1")
    end = rig.exit(token)
    assert (end.value, end.tail) == (signal.SIGKILL, [])


def test_the_clock_runs_while_no_agent_is_there(rig: Rig) -> None:
    token = rig.sh(_STUBBORN, limits=_limits(grace=0.1))
    (pid,) = rig.pids(token)
    rig.wire.close()
    rig.gone(pid)
    wire = rig.connect()
    assert wire.exit(token).tail == [_REACHED]


def test_a_launch_that_is_sent_again_does_not_set_the_clock_again(rig: Rig) -> None:
    spec = Spec(token=b"twice", program=b"/bin/sleep", argv=[b"sleep", b"9999"], limits=_limits())
    rig.wire.send(b"launch", *spec.fields())
    rig.started(b"twice")
    rig.wire.send(b"launch", *spec.fields())
    assert rig.exit(b"twice").tail == [_REACHED]


def test_once_the_leader_has_gone_nothing_is_left_to_happen() -> None:
    """Its pid may be another's by then."""
    timers = Timers()
    procs = Procs(timers, 0.0, 0.0, lambda *_: None, lambda _: None)
    limits = _limits(signum=signal.SIGKILL, lead=0.1)
    proc = Proc(Spec(token=b"t", program=b"p", argv=[b"p"], limits=limits), os.getpid())
    assert TimeLimit(limits, proc, procs, timers).over() == []
    assert timers.wait() == -1


def test_a_launch_that_fails_has_no_clock(rig: Rig) -> None:
    assert rig.exit(rig.launch("/no/such/program", limits=_limits())).tail == []
    assert rig.exit(rig.sh("exec sleep 9999", limits=_limits())).tail == [_REACHED]


# -- the signal ahead of it -------------------------------------------------------------------------------------------


def test_a_signal_comes_ahead_of_the_limit_and_the_result_says_so(rig: Rig) -> None:
    script = "trap 'echo saving; exit 7' USR1; echo up; while :; do sleep 9999 & wait; done"
    end = rig.exit(rig.sh(script, limits=_limits(9999.25, signum=signal.SIGUSR1, lead=9998.0)))
    assert (end.kind, end.value) == ("exited", 7)
    assert end.tail == ["[ray_launcher] SIGUSR1 sent 9998 s before the time limit of 9999.25 s"]


def test_the_limit_comes_after_the_signal(rig: Rig) -> None:
    script = "trap 'echo saving' USR1; trap 'echo leaving; exit 7' TERM; while :; do sleep 9999 & wait; done"
    token = rig.sh(script, limits=_limits(2.5, signum=signal.SIGUSR1, lead=1.25))
    end = rig.exit(token)
    assert end.value == 7
    assert [line.split()[1] for line in end.tail] == ["SIGUSR1", "time"]
    assert rig.words(token, 2) == ["saving", "leaving"]


def test_the_signal_is_the_leaders_alone(rig: Rig) -> None:
    script = "sleep 9999 & echo $!; trap 'echo saving' USR1; while :; do wait; done"
    token = rig.sh(script, limits=_limits(9999.25, signum=signal.SIGUSR1, lead=9998.0))
    assert rig.words(token, 2)[1] == "saving"
    assert running(rig.pids(token)[0])
    rig.wire.send(b"kill", token)
    rig.exit(token)


def test_a_proc_that_does_not_expect_the_signal_is_killed_by_it_and_the_result_says_why(rig: Rig) -> None:
    number = signal.SIGRTMIN + 3
    end = rig.exit(rig.sh("exec sleep 9999", limits=_limits(9999.5, signum=number, lead=9999.3)))
    assert (end.kind, end.value) == ("signaled", number)
    assert end.tail == [f"[ray_launcher] signal {number} sent 9999.3 s before the time limit of 9999.5 s"]


def test_terminate_does_not_send_the_signal(rig: Rig) -> None:
    script = "trap 'echo saving' USR1; trap 'exit 5' TERM; echo $$; while :; do sleep 9999 & wait; done"
    token = rig.sh(script, limits=_limits(9999.0, signum=signal.SIGUSR1, lead=1.0))
    rig.words(token)
    rig.wire.send(b"terminate", token, b"inf")
    end = rig.exit(token)
    assert (end.value, end.tail) == (5, [])
    assert b"saving" not in rig.output(token)
