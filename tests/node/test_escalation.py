"""TERM, then KILL after a time: one mechanism, cancelled by the exit."""

from __future__ import annotations

import os
import signal

import pytest
from node_rig import Rig, running, stat, until

_STUBBORN = "trap '' TERM; echo $$; exec sleep 9999"
_POLITE = "trap 'echo bye; exit 42' TERM; echo $$; while :; do sleep 9999 & wait; done"


def _started(rig: Rig, script: str) -> tuple[bytes, int]:
    """A proc that has set up its traps, and its pid."""
    token = rig.sh(script)
    return token, rig.pids(token)[0]


def _wait_for_an_escalation(rig: Rig, seconds: str = "0.3") -> None:
    """Let that much time pass, by the supervisor's own clock."""
    token, _ = _started(rig, _STUBBORN)
    rig.wire.send(b"terminate", token, seconds.encode())
    assert rig.exit(token).value == signal.SIGKILL


def test_a_proc_may_end_in_its_own_way(rig: Rig) -> None:
    token, _ = _started(rig, _POLITE)
    rig.wire.send(b"terminate", token, b"9999")
    end = rig.exit(token)
    assert (end.kind, end.value) == ("exited", 42)
    assert rig.words(token, 2)[1] == "bye"


def test_a_proc_that_handles_nothing_ends_by_term(rig: Rig) -> None:
    token, _ = _started(rig, "echo $$; exec sleep 9999")
    rig.wire.send(b"terminate", token, b"9999")
    end = rig.exit(token)
    assert (end.kind, end.value) == ("signaled", signal.SIGTERM)


def test_a_proc_that_ignores_term_is_killed_when_the_time_is_up(rig: Rig) -> None:
    token, _ = _started(rig, _STUBBORN)
    rig.wire.send(b"terminate", token, b"0.1")
    end = rig.exit(token)
    assert (end.kind, end.value) == ("signaled", signal.SIGKILL)


def test_a_time_of_zero_kills_at_once(rig: Rig) -> None:
    token, _ = _started(rig, _STUBBORN)
    rig.wire.send(b"terminate", token, b"0")
    assert rig.exit(token).value == signal.SIGKILL


@pytest.mark.parametrize("seconds", ["inf", "1e300", "1e9"])
def test_a_time_without_end_never_escalates(rig: Rig, seconds: str) -> None:
    token, pid = _started(rig, _STUBBORN)
    rig.wire.send(b"terminate", token, seconds.encode())
    _wait_for_an_escalation(rig)
    assert running(pid)
    rig.wire.send(b"kill", token)
    assert rig.exit(token).value == signal.SIGKILL


@pytest.mark.parametrize("first, second", [("9999", "0.1"), ("0.1", "9999"), ("inf", "0.1"), ("0.1", "inf")])
def test_of_several_deadlines_the_earliest_holds(rig: Rig, first: str, second: str) -> None:
    token, _ = _started(rig, _STUBBORN)
    rig.wire.send(b"terminate", token, first.encode())
    rig.wire.send(b"terminate", token, second.encode())
    assert rig.exit(token).value == signal.SIGKILL


def test_kill_wins_over_every_deadline(rig: Rig) -> None:
    token, _ = _started(rig, _STUBBORN)
    rig.wire.send(b"terminate", token, b"9999")
    rig.wire.send(b"kill", token)
    assert rig.exit(token).value == signal.SIGKILL


def test_term_comes_once_however_often_it_is_asked_for(rig: Rig) -> None:
    token, _ = _started(rig, "trap 'echo term' TERM; echo $$; while :; do sleep 9999 & wait; done")
    rig.wire.send(b"terminate", token, b"9999")
    rig.words(token, 2)
    rig.wire.send(b"terminate", token, b"9999")
    _wait_for_an_escalation(rig)
    rig.wire.send(b"kill", token)
    rig.exit(token)
    assert rig.words(token, 2)[1:] == rig.output(token).decode().splitlines()[1:] == ["term"]


def test_the_exit_cancels_the_escalation(rig: Rig) -> None:
    token, _ = _started(rig, _POLITE)
    rig.wire.send(b"terminate", token, b"0.2")
    rig.exit(token)
    bystander, pid = _started(rig, _STUBBORN)
    _wait_for_an_escalation(rig, "0.4")
    assert running(pid)
    rig.wire.send(b"kill", bystander)
    rig.exit(bystander)


def test_a_stopped_proc_hears_its_term(rig: Rig) -> None:
    token, pid = _started(rig, "trap 'exit 42' TERM; echo $$; while :; do kill -STOP $$; done")
    until(lambda: stat(pid)[0] == "T", "it is stopped")
    rig.wire.send(b"terminate", token, b"9999")
    assert rig.exit(token).value == 42


def test_a_stopped_proc_that_handles_nothing_ends_by_term(rig: Rig) -> None:
    token, pid = _started(rig, "echo $$; kill -STOP $$; exec sleep 9999")
    until(lambda: stat(pid)[0] == "T", "it is stopped")
    rig.wire.send(b"terminate", token, b"9999")
    assert rig.exit(token).value == signal.SIGTERM


def test_a_stopped_proc_is_killed(rig: Rig) -> None:
    token, pid = _started(rig, "trap '' TERM; echo $$; kill -STOP $$; exec sleep 9999")
    until(lambda: stat(pid)[0] == "T", "it is stopped")
    rig.wire.send(b"kill", token)
    assert rig.exit(token).value == signal.SIGKILL


def test_the_report_tells_what_happened_and_not_what_was_asked_for(rig: Rig) -> None:
    token, pid = _started(rig, "trap 'exit 0' TERM; echo $$; while :; do sleep 9999 & wait; done")
    os.kill(pid, signal.SIGUSR1)
    rig.wire.send(b"terminate", token, b"0.1")
    assert rig.exit(token).value == signal.SIGUSR1


def test_many_are_killed_when_their_time_is_up(rig: Rig) -> None:
    tokens = [rig.sh(_STUBBORN) for _ in range(100)]
    for token in tokens:
        rig.words(token)
        rig.wire.send(b"terminate", token, b"0.1")
    assert {rig.exit(token).value for token in tokens} == {signal.SIGKILL}


def test_any_signal_can_be_sent(rig: Rig) -> None:
    token, _ = _started(rig, "trap 'echo usr1' USR1; echo $$; while :; do sleep 9999 & wait; done")
    rig.wire.send(b"signal", token, b"%d" % signal.SIGUSR1)
    assert rig.words(token, 2)[1] == "usr1"
    rig.wire.send(b"signal", token, b"%d" % signal.SIGKILL)
    assert rig.exit(token).value == signal.SIGKILL


@pytest.mark.parametrize("verb", [(b"kill",), (b"terminate", b"1"), (b"signal", b"9")])
def test_a_request_for_a_token_that_does_not_run_is_nothing(rig: Rig, verb: tuple[bytes, ...]) -> None:
    ended = rig.sh("exit 1")
    rig.exit(ended)
    bystander, pid = _started(rig, _STUBBORN)
    for token in (ended, b"never launched", b""):
        rig.wire.send(verb[0], token, *verb[1:])
    rig.wire.barrier()
    assert not [frame for frame in rig.wire.frames if frame[0] == b"exit"]
    assert running(pid)
    rig.wire.send(b"kill", bystander)
    rig.exit(bystander)
