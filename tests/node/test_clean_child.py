"""A proc starts clean, whatever the supervisor was started from and whatever it does itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_rig import Rig, stat


def _start_from_a_dirty_process(rig: Rig) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD, signal.SIGTERM])
            for _ in range(40):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            os.umask(0o027)
            rig.start()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def dirty(tmp_path: Path) -> Iterator[Rig]:
    """A supervisor that was started from a process as a Ray worker is one, and worse."""
    rig = Rig(tmp_path)
    _start_from_a_dirty_process(rig)
    rig.connect()
    yield rig
    rig.stop()


def _status(rig: Rig) -> dict[str, str]:
    token = rig.launch("/bin/cat", "/proc/self/status")
    assert rig.exit(token).value == 0
    return dict(line.split(":\t", 1) for line in rig.output(token).decode().splitlines() if ":\t" in line)


def test_no_signal_is_blocked_ignored_or_pending(dirty: Rig) -> None:
    status = _status(dirty)
    assert {int(status[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")} == {0}


def test_only_the_three_standard_descriptors_are_open(dirty: Rig) -> None:
    token = dirty.sh("cd /proc/self/fd && echo *")  # the shell expands it, with a descriptor of its own at most
    assert dirty.exit(token).value == 0
    script = (
        "import os\nfor n in range(256):\n  try: print(n, os.readlink(f'/proc/self/fd/{n}'))\n  except OSError: pass"
    )
    token = dirty.python(script)
    assert dirty.exit(token).value == 0
    expected = [f"0 {os.devnull}", f"1 {dirty.log(token, 'out')}", f"2 {dirty.log(token, 'err')}"]
    assert dirty.output(token).decode().splitlines() == expected


def test_stdin_is_at_its_end(dirty: Rig) -> None:
    assert dirty.exit(dirty.sh('test -z "$(cat)" && exit 5')).value == 5


def test_the_leader_leads_its_own_session_and_group_without_a_terminal(dirty: Rig) -> None:
    token = dirty.sh("echo $$; exec sleep 9999")
    (pid,) = dirty.pids(token)
    _state, parent, group, session, terminal = stat(pid)[:5]
    assert (int(parent), int(group), int(session), int(terminal)) == (dirty.pid, pid, pid, 0)


def test_the_umask_is_the_one_handed_down(dirty: Rig) -> None:
    token = dirty.sh("umask")
    dirty.exit(token)
    assert dirty.words(token) == ["0027"]


def test_a_child_has_no_parent_death_signal(dirty: Rig) -> None:
    token = dirty.python(
        "import ctypes; n = ctypes.c_int(-1); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
    )
    dirty.exit(token)
    assert dirty.words(token) == ["0"]


def test_limits_and_niceness_are_the_ones_handed_down(dirty: Rig) -> None:
    token = dirty.launch("/bin/cat", "/proc/self/limits", "/proc/self/stat", "/proc/self/oom_score_adj")
    dirty.exit(token)
    limits, facts = dirty.output(token).decode().split("(cat)")
    assert limits.startswith(Path("/proc/self/limits").read_text().rpartition("\n")[0])
    assert (facts.split()[16], facts.split()[-1]) == (stat(os.getpid())[16], _oom_score_adj())


def _oom_score_adj() -> str:
    return Path("/proc/self/oom_score_adj").read_text().strip()


def test_without_stdio_output_is_discarded(rig: Rig) -> None:
    token = rig.launch("/bin/sh", "-c", "readlink /proc/self/fd/1 >&2; readlink /proc/self/fd/2", stdio=False)
    end = rig.exit(token)
    assert (end.value, end.tail) == (0, [])
    assert list(rig.logs.iterdir()) == []


def test_log_files_are_for_their_owner_only(rig: Rig) -> None:
    token = rig.sh("echo out; echo err >&2")
    rig.exit(token)
    assert {rig.log(token, stream).stat().st_mode & 0o777 for stream in ("out", "err")} == {0o600}


def test_the_supervisor_itself_shows_no_environment_and_no_arguments_of_procs(rig: Rig) -> None:
    token = rig.launch("/bin/sleep", "9999", env={"SECRET": "hunter2"})
    rig.wire.verb(b"started")
    seen = Path(f"/proc/{rig.pid}/environ").read_bytes() + Path(f"/proc/{rig.pid}/cmdline").read_bytes()
    assert b"hunter2" not in seen
    assert b"9999" not in seen
    assert token
