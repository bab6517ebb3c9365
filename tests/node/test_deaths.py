"""Who may die, and what happens then."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from node_rig import Rig, Wire, marked, running, until

from ray_launcher.node import client

#: A leader with a child, a setsid escapee and a daemon that has cleared its environment; each prints its pid.
_TREE = (
    "trap '' TERM; echo $$; (echo $(sh -c 'echo $PPID'); exec sleep 9999) & "
    "setsid sh -c 'echo $$; exec sleep 9999' $0 & "
    "(env -i setsid sh -c \"trap '' TERM; echo \\$\\$; exec sleep 9999\" $0 &) ; exec sleep 9999"
)


@pytest.fixture
def raylet() -> Iterator[subprocess.Popen[bytes]]:
    """Any process will do."""
    with subprocess.Popen(["/bin/sleep", "9999"]) as process:
        yield process
        process.kill()


def _tree(rig: Rig) -> tuple[bytes, list[int]]:
    token = rig.sh(_TREE)
    return token, rig.pids(token, 4)


def test_when_the_raylet_has_gone_procs_get_term_then_kill_and_the_supervisor_ends(
    make_rig: Callable[..., Rig], raylet: subprocess.Popen[bytes]
) -> None:
    rig = make_rig(raylet=raylet.pid)
    polite = rig.sh("trap 'exit 42' TERM; sleep 9999 & echo $$; wait")
    rig.pids(polite)
    token, pids = _tree(rig)
    raylet.kill()
    assert rig.exit(polite).value == 42
    assert rig.exit(token).value == signal.SIGKILL
    rig.wire.verb(b"bye")
    rig.gone(*pids)
    rig.wait_end()


def test_a_raylet_that_is_gone_before_the_start_is_an_error_that_says_so(
    tmp_path: Path, raylet: subprocess.Popen[bytes]
) -> None:
    raylet.kill()
    raylet.wait()
    rig = Rig(tmp_path, raylet=raylet.pid)
    with pytest.raises(client.SupervisorError, match="the node's raylet has gone"):
        rig.start()


def test_a_start_without_its_raylet_leaves_no_directory(tmp_path: Path, raylet: subprocess.Popen[bytes]) -> None:
    raylet.kill()
    raylet.wait()
    rig = Rig(tmp_path, raylet=raylet.pid)
    with contextlib.suppress(client.SupervisorError):
        rig.start()
    assert not rig.directory.exists()


def test_a_supervisor_that_is_killed_takes_everything_with_it(rig: Rig) -> None:
    _, pids = _tree(rig)
    os.kill(rig.pid, signal.SIGKILL)
    rig.wire.wait_closed()
    rig.wait_end()
    rig.gone(*pids, rig.pid, rig.guard)
    assert not marked(rig.marker)


def test_a_killed_supervisors_socket_answers_nobody(rig: Rig) -> None:
    def refused() -> bool:
        try:
            Wire(rig.directory, hello=False).close()
        except ConnectionRefusedError:
            return True
        return False

    os.kill(rig.guard, signal.SIGSTOP)
    try:
        os.kill(rig.pid, signal.SIGKILL)
        until(refused, "connections are refused")
        assert rig.locked()
    finally:
        os.kill(rig.guard, signal.SIGCONT)


def test_a_guard_that_is_killed_makes_the_supervisor_end_in_order(rig: Rig) -> None:
    polite = rig.sh("trap 'exit 42' TERM; sleep 9999 & echo $$; wait")
    rig.pids(polite)
    token, pids = _tree(rig)
    os.kill(rig.guard, signal.SIGKILL)
    assert rig.exit(polite).value == 42
    assert rig.exit(token).value == signal.SIGKILL
    rig.wire.verb(b"bye")
    rig.gone(*pids, rig.pid)


def test_a_supervisor_that_gets_sigterm_ends_in_order(rig: Rig) -> None:
    polite = rig.sh("trap 'exit 42' TERM; sleep 9999 & echo $$; wait")
    rig.pids(polite)
    token, pids = _tree(rig)
    os.kill(rig.pid, signal.SIGTERM)
    assert rig.exit(polite).value == 42
    assert rig.exit(token).value == signal.SIGKILL
    rig.wire.verb(b"bye")
    rig.gone(*pids, rig.pid, rig.guard)


def test_a_signal_to_the_supervisors_group_does_not_hit_its_guard(rig: Rig) -> None:
    _, pids = _tree(rig)
    os.killpg(os.getpgid(rig.pid), signal.SIGKILL)
    rig.gone(*pids, rig.pid, rig.guard)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE, signal.SIGQUIT])
def test_other_signals_leave_supervisor_and_guard_alone(rig: Rig, signum: int) -> None:
    for pid in (rig.pid, rig.guard):
        os.kill(pid, signum)
    os.kill(rig.guard, signal.SIGTERM)
    assert rig.exit(rig.sh("exit 7")).value == 7
    assert running(rig.guard)


def test_the_kernel_that_kills_a_proc_kills_nothing_else(rig: Rig) -> None:
    victim, bystander = rig.sh("echo $$; exec sleep 9999"), rig.sh("echo $$; exec sleep 9999")
    (pid,), (kept,) = rig.pids(victim), rig.pids(bystander)
    os.kill(pid, signal.SIGKILL)
    end = rig.exit(victim)
    assert (end.kind, end.value) == ("signaled", signal.SIGKILL)
    assert running(kept)


def test_a_second_supervisor_for_the_same_directory_is_none(rig: Rig) -> None:
    token = rig.sh("echo $$; exec sleep 9999")
    (pid,) = rig.pids(token)
    rig.start()  # returns as after a start of its own
    first = rig.pid
    rig.connect()
    assert rig.pid == first
    assert rig.listed[0] == token
    assert running(pid)
    arguments = [str(rig.directory), "0", "1", "1", "1", "1"]
    again = subprocess.run(
        [sys.executable, "-I", "-S", str(client._MAIN), *arguments], capture_output=True, check=False
    )
    assert (again.returncode, again.stdout) == (3, b"there is one already\n")


def test_a_supervisor_can_follow_one_that_was_killed(rig: Rig) -> None:
    _, pids = _tree(rig)
    os.kill(rig.pid, signal.SIGKILL)
    assert client.wait_until_free(rig.directory, 20.0)
    rig.gone(*pids)
    first = rig.pid
    rig.start()
    rig.connect()
    assert rig.pid != first
    assert rig.exit(rig.sh("exit 7")).value == 7


_INNER = """
import sys, time
from pathlib import Path
from ray_launcher.node import client
directory = Path(sys.argv[1])
client.make_directory(directory)
client.start(directory, 0, 9999, 9999)
print("started", flush=True)
time.sleep(9999)
"""


def test_a_supervisor_inside_a_proc_belongs_to_that_proc(rig: Rig, tmp_path: Path) -> None:
    """Its parent has gone, its session is its own, its environment nearly empty: it is known by the cookie."""
    inner = Rig(tmp_path)
    package = str(Path(client.__file__).parents[2])
    arguments = ("-c", _INNER, str(inner.directory), rig.marker)
    token = rig.launch(sys.executable, *arguments, env={"PYTHONPATH": package})
    until(lambda: rig.output(token), "the inner supervisor runs")
    inner.connect()
    (pid,) = inner.pids(inner.sh("echo $$; exec sleep 9999"))
    rig.wire.send(b"kill", token)
    rig.exit(token)
    rig.gone(inner.pid, inner.guard, pid)
    inner.stop()
