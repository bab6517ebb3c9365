"""The true wait status arrives, whatever it is."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
from node_rig import Rig

_HARMLESS = {"SIGCHLD", "SIGCLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGWINCH"}
_DEADLY = sorted(
    int(number) for number in signal.valid_signals() if getattr(number, "name", "a real-time one") not in _HARMLESS
)


def test_every_exit_code_arrives(rig: Rig) -> None:
    tokens = {code: rig.sh(f"exit {code}") for code in range(256)}
    ends = {code: rig.exit(token) for code, token in tokens.items()}
    assert {(code, end.kind, end.value) for code, end in ends.items()} == {(n, "exited", n) for n in range(256)}


def test_every_deadly_signal_arrives(rig: Rig) -> None:
    tokens = {number: rig.sh(f"kill -{number} $$") for number in _DEADLY}
    ends = {number: rig.exit(token) for number, token in tokens.items()}
    assert {(number, end.kind, end.value) for number, end in ends.items()} == {
        (number, "signaled", number) for number in _DEADLY
    }


def _dumps_core_here(path: Path) -> bool:
    script = 'cd "$0" && ulimit -c "$(ulimit -H -c)" && kill -ABRT $$'
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", script, str(path)], os.environ)
    return os.WCOREDUMP(os.waitpid(pid, 0)[1])


def test_a_core_dump_is_told(rig: Rig, tmp_path: Path) -> None:
    if not _dumps_core_here(tmp_path):
        pytest.skip("this machine's core_pattern or hard limit lets no core be dumped")
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.prlimit(rig.pid, resource.RLIMIT_CORE, (hard, hard))
    end = rig.exit(rig.launch("/bin/sh", "-c", "kill -ABRT $$", cwd=tmp_path))
    assert (end.kind, end.value, end.core) == ("signaled", signal.SIGABRT, True)


def test_without_a_core_dump_none_is_told(rig: Rig) -> None:
    resource.prlimit(rig.pid, resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    end = rig.exit(rig.sh("kill -ABRT $$"))
    assert (end.value, end.core) == (signal.SIGABRT, False)


def test_a_leader_that_ends_at_once_has_both_an_exit_and_no_start(rig: Rig) -> None:
    token = rig.launch("/bin/true")
    assert rig.exit(token).kind == "exited"
    rig.wire.barrier()
    assert not [frame for frame in rig.wire.frames if frame[0] == b"started"]


def test_a_proc_that_runs_is_announced_with_its_pid(rig: Rig) -> None:
    token = rig.sh("echo $$; exec sleep 9999")
    announced, pid, started = rig.wire.verb(b"started")
    assert (announced, int(pid)) == (token, rig.pids(token)[0])
    assert float(started) > 1e9


def test_a_leader_whose_first_thread_ends_is_alive_until_the_others_end(rig: Rig) -> None:
    token = rig.python(
        "import ctypes, os, sys, threading\n"
        "def rest():\n"
        "    print(os.getpid(), flush=True)\n"
        "    sys.stdin.read()\n"
        "    import signal; signal.sigtimedwait([signal.SIGUSR1], 9999)\n"
        "    os._exit(7)\n"
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "threading.Thread(target=rest).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)  # exit of this thread only, on x86-64\n"
    )
    rig.pids(token)
    rig.wire.barrier()
    rig.wire.send(b"signal", token, b"%d" % signal.SIGUSR1)
    assert rig.exit(token).value == 7
