"""Whose is it: here the test process plays the supervisor, so that a look can be taken at a chosen moment."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node_rig import until

from ray_launcher.node import proctable
from ray_launcher.node.kinship import Kinship, Proc
from ray_launcher.node.proctable import Stat
from ray_launcher.node.spec import Spec

_SUBREAPER = 36

#: A leader whose child makes, on a cue, a daemon without parent, session or environment, and exits on another.
_LEADER = """
import os, sys
if os.fork() == 0:
    os.setsid()
    sys.stdin.readline()
    if os.fork() == 0:
        os.setsid()
        os.execve("/bin/sh", ["sh", "-c", "echo $$; kill -STOP $$"], {})
    sys.stdin.readline()
    os._exit(0)
os.wait()
print("reaped", flush=True)
sys.stdin.readline()
sys.stdin.readline()
"""


@pytest.fixture
def kinship() -> Iterator[Kinship]:
    """Empty; orphans below the test become its children meanwhile, and those that came are killed at the end."""
    libc = ctypes.CDLL(None)
    before = set(proctable.children(os.getpid()))  # Ray, where other tests have started it
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    kinship = Kinship()
    try:
        yield kinship
    finally:
        for stray in (stray for stray in kinship.strays() if stray.pid not in before):
            os.kill(stray.pid, signal.SIGKILL)
            os.waitpid(stray.pid, 0)
        libc.prctl(_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def leader() -> Iterator[subprocess.Popen[str]]:
    with _process(sys.executable, "-I", "-S", "-u", "-c", _LEADER, start_new_session=True) as process:
        yield process


@contextlib.contextmanager
def _process(*command: str | Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed afterwards, whatever happens."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def _adopt(kinship: Kinship, pid: int, token: bytes = b"token") -> Proc:
    proc = Proc(Spec(token=token, program=b"", argv=[b""]), pid)
    kinship.add(proc)
    return proc


def _say(leader: subprocess.Popen[str]) -> None:
    assert leader.stdin is not None
    leader.stdin.write("go\n")
    leader.stdin.flush()


def _hear(leader: subprocess.Popen[str]) -> str:
    assert leader.stdout is not None
    return leader.stdout.readline()


def _stray(pid: int) -> Stat:
    found = proctable.stat(pid)
    assert found is not None
    assert found.ppid == os.getpid()
    return found


def test_a_daemon_that_hid_everything_is_known_by_the_ancestry_last_sampled(
    kinship: Kinship, leader: subprocess.Popen[str]
) -> None:
    proc = _adopt(kinship, leader.pid)
    _say(leader)
    daemon = int(_hear(leader))
    kinship.sample()
    _say(leader)
    assert _hear(leader) == "reaped\n"
    stray = _stray(daemon)
    assert (stray.session, proctable.cookie(daemon)) == (daemon, None)
    assert kinship.owner(stray) is proc
    kinship.sample()  # from now on the sample before tells
    assert kinship.owner(stray) is proc
    assert [found.key for found in kinship.strays_by_owner()[proc]] == [stray.key]


def test_without_a_sample_such_a_daemon_is_nobodys(kinship: Kinship, leader: subprocess.Popen[str]) -> None:
    _adopt(kinship, leader.pid)
    _say(leader)
    daemon = int(_hear(leader))
    _say(leader)
    assert _hear(leader) == "reaped\n"
    assert kinship.owner(_stray(daemon)) is None
    assert list(kinship.strays_by_owner()) == [None]


def test_a_process_that_took_over_a_sampled_pid_is_nobodys(kinship: Kinship, leader: subprocess.Popen[str]) -> None:
    _adopt(kinship, leader.pid)
    _say(leader)
    daemon = int(_hear(leader))
    kinship.sample()
    _say(leader)
    assert _hear(leader) == "reaped\n"
    later = _stray(daemon)
    later.start += 1
    assert kinship.owner(later) is None


def test_what_remains_of_a_proc_that_was_given_up_is_nobodys(kinship: Kinship, leader: subprocess.Popen[str]) -> None:
    proc = _adopt(kinship, leader.pid)
    _say(leader)
    daemon = int(_hear(leader))
    kinship.sample()
    _say(leader)
    assert _hear(leader) == "reaped\n"
    kinship.remove(proc)
    assert kinship.owner(_stray(daemon)) is None


def test_removing_a_proc_leaves_a_later_one_with_its_pid_alone(kinship: Kinship) -> None:
    earlier, later = _adopt(kinship, 4_000_000, b"earlier"), _adopt(kinship, 4_000_000, b"later")
    kinship.remove(earlier)
    assert kinship.procs() == [later]
    assert b"later" in kinship
    assert b"earlier" not in kinship
    line = Path("/proc/self/stat").read_bytes()
    stray = Stat(1, line)
    stray.session = 4_000_000
    assert kinship.owner(stray) is later


# -- /proc ------------------------------------------------------------------------------------------------------------


def test_a_command_name_may_hold_parentheses_and_spaces(tmp_path: Path) -> None:
    program = tmp_path / "a) Z (1 2"
    program.symlink_to("/bin/sleep")
    with _process(program, "9999") as process:
        until(lambda: b"a) Z" in Path(f"/proc/{process.pid}/stat").read_bytes(), "it has been exec'ed")
        found = proctable.stat(process.pid)
    assert found is not None
    assert (found.ppid, found.alive) == (os.getpid(), True)


def test_a_zombie_is_not_alive_and_then_gone() -> None:
    with _process("/bin/true") as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        found = proctable.stat(process.pid)
        assert found is not None
        assert not found.alive
        assert process.pid in proctable.children(os.getpid())
        with pytest.raises(proctable.HalfwayError):  # its children may become ours in a moment
            proctable.cookie(process.pid)
    assert proctable.stat(process.pid) is None
    assert proctable.tree(process.pid) == []
    assert proctable.cookie(process.pid) is None


def test_a_signal_goes_to_the_process_that_was_seen_and_to_no_later_one() -> None:
    with _process("/bin/sleep", "9999") as process:
        seen = proctable.stat(process.pid)
        assert seen is not None
        seen.start += 1
        proctable.send(seen, signal.SIGKILL)
        seen.start -= 1
        proctable.send(seen, signal.SIGUSR1)
        assert process.wait() == -signal.SIGUSR1
        proctable.send(seen, signal.SIGKILL)  # gone: nothing


def test_children_of_every_thread_are_children() -> None:
    script = (
        "import subprocess, threading, time\n"
        "def run():\n"
        "    print(subprocess.Popen(['/bin/sleep', '9999']).pid, flush=True); time.sleep(9999)\n"
        "threading.Thread(target=run).start()"
    )
    with _process(sys.executable, "-c", script) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert proctable.children(process.pid) == [child]
        assert [found.pid for found in proctable.tree(process.pid)] == [process.pid, child]
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    "environ, cookie",
    [
        ({"RAY_LAUNCHER_ID": "s/t"}, b"s/t"),
        ({"A": "1", "RAY_LAUNCHER_ID": "s/t", "B": "2"}, b"s/t"),
        ({"RAY_LAUNCHER_ID": ""}, b""),
        ({"XRAY_LAUNCHER_ID": "s/t", "A": "RAY_LAUNCHER_ID=s/t"}, None),
        ({}, None),
    ],
)
def test_the_cookie_is_read_from_the_environment(environ: dict[str, str], cookie: bytes | None) -> None:
    with _process("/bin/sleep", "9999", env=environ) as process:
        until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "it has been exec'ed")
        assert proctable.cookie(process.pid) == cookie


def test_the_cookie_is_read_although_the_first_thread_has_ended() -> None:
    script = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(9999,)).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    with _process(sys.executable, "-I", "-S", "-c", script, env={"RAY_LAUNCHER_ID": "s/t"}) as process:
        until(lambda: "State:\tZ" in Path(f"/proc/{process.pid}/status").read_text(), "its first thread has ended")
        assert proctable.cookie(process.pid) == b"s/t"


def test_a_stray_within_an_exec_makes_a_look_unclear(kinship: Kinship, monkeypatch: pytest.MonkeyPatch) -> None:
    def halfway(_pid: int) -> bytes | None:
        raise proctable.HalfwayError

    with _process("/bin/sleep", "9999") as process:
        until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "it has been exec'ed")
        monkeypatch.setattr(proctable, "cookie", halfway)
        assert list(kinship.strays_by_owner()) == [None]
        assert kinship.unclear


def test_a_stray_that_has_just_died_makes_a_look_unclear(kinship: Kinship) -> None:
    """What it leaves becomes ours, but perhaps after the list of our children was read."""
    with _process("/bin/true") as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.pid not in {stray.pid for stray in kinship.strays()}
        assert kinship.unclear
        assert process.pid not in {stray.pid for stray in kinship.strays()}
        assert not kinship.unclear
