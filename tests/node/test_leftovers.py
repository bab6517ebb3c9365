"""What outlives its leader is swept: TERM, a short grace, KILL. The leader's own end is told at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from node_rig import Rig, marked, running, until

#: Each leaves a process that runs the script of $1, which writes a line once it is ready; then the leader exits 5.
_LEFT = {
    "child": 'sh -c "$1" $0 &',
    "own session": 'setsid sh -c "$1" $0 &',
    "double fork": '(setsid sh -c "$1" $0 &)',
    "own group": 'set -m; sh -c "$1" $0 &',
}
_STUBBORN_IN_A_SESSION = "setsid sh -c \"trap '' TERM; echo \\$\\$; exec sleep 9999\" $0 &"
_UNTIL_READY = "until test -s /proc/$$/fd/1; do :; done; exit 5"


def _leave(rig: Rig, shape: str, script: str) -> bytes:
    return rig.sh(f"{shape}\n{_UNTIL_READY}", script)


@pytest.mark.parametrize("shape", _LEFT.values(), ids=_LEFT.keys())
def test_leftovers_get_a_term_that_they_can_act_on(make_rig: Callable[..., Rig], shape: str) -> None:
    rig = make_rig(leftover_grace=9999.0)
    token = _leave(rig, shape, "trap 'echo bye; exit' TERM; echo $$; kill -STOP $$")
    assert rig.exit(token).value == 5
    assert rig.words(token, 2)[1] == "bye"
    rig.none_left()


@pytest.mark.parametrize("shape", _LEFT.values(), ids=_LEFT.keys())
def test_leftovers_that_ignore_term_are_killed_after_a_grace(make_rig: Callable[..., Rig], shape: str) -> None:
    rig = make_rig(leftover_grace=0.1)
    token = _leave(rig, shape, "trap '' TERM; echo $$; exec sleep 9999")
    assert rig.exit(token).value == 5
    rig.gone(*rig.pids(token))
    rig.none_left()


def test_the_result_does_not_wait_for_leftovers(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(leftover_grace=9999.0)
    token = _leave(rig, _LEFT["own session"], "trap '' TERM; echo $$; exec sleep 9999")
    assert rig.exit(token).value == 5
    assert running(*rig.pids(token))


def test_leftovers_of_a_leader_that_died_are_swept_too(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(leftover_grace=0.1)
    token = rig.sh(f"{_STUBBORN_IN_A_SESSION} echo $$ >&2; wait")
    (pid,) = rig.pids(token)
    os.kill(int(until(rig.log(token, "err").read_text, "the leader's pid")), signal.SIGSEGV)
    assert rig.exit(token).value == signal.SIGSEGV
    rig.gone(pid)


def test_a_deadline_that_is_earlier_than_the_grace_holds_for_leftovers(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(leftover_grace=9999.0)
    token = rig.sh(f"{_STUBBORN_IN_A_SESSION} wait")
    (pid,) = rig.pids(token)
    rig.wire.send(b"terminate", token, b"0.2")
    assert rig.exit(token).value == signal.SIGTERM
    rig.gone(pid)


def test_stop_does_not_wait_out_the_leftovers_grace(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(leftover_grace=9999.0)
    token = _leave(rig, _LEFT["own session"], "trap '' TERM; echo $$; exec sleep 9999")
    rig.exit(token)
    rig.wire.send(b"stop", b"0")
    rig.wire.wait_closed()
    assert not marked(rig.marker)


def test_leftovers_of_many_procs_are_swept_each_in_its_turn(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(leftover_grace=0.1)
    tokens = [rig.sh("(trap '' TERM; exec sleep 9999) & exit 5") for _ in range(100)]
    assert {rig.exit(token).value for token in tokens} == {5}
    rig.none_left()


def test_leftovers_that_exec_all_the_time_are_swept_too(make_rig: Callable[..., Rig], tmp_path: Path) -> None:
    """Within an exec a process shows no environment, and so not whose it is."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = "#include <unistd.h>\nint main(int n, char **argv) { (void)n; execv(argv[0], argv); return 1; }\n"
    (tmp_path / "again.c").write_text(source)
    subprocess.run([compiler, "-static", "-o", tmp_path / "again", tmp_path / "again.c"], check=True)
    rig = make_rig(leftover_grace=0.1)
    for _ in range(10):
        tokens = [rig.sh(f"trap '' TERM; setsid {tmp_path}/again $0 & exit 5") for _ in range(4)]
        assert {rig.exit(token).value for token in tokens} == {5}
    rig.none_left()
