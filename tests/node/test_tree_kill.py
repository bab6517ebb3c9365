"""A proc is its whole tree, escapees included: signals reach all of it, and nothing of it survives a kill."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from limits import cgroup
from node_rig import Rig, running, until

#: Each of these makes a descendant that prints its pid; the script of $1 runs in it.
_SHAPES = {
    "child": 'sh -c "$1" $0 & wait',
    "grandchild": '(sh -c "$1" $0 & wait) & wait',
    "setsid": 'setsid sh -c "$1" $0 & wait',
    "orphan": '(sh -c "$1" $0 &) ; exec sleep 9999',
    "double fork": '(setsid sh -c "$1" $0 &) ; exec sleep 9999',
    "own group": 'set -m; sh -c "$1" $0 & wait',
    "orphan without environment": '(exec env -i sh -c "$1" $0 &) ; exec sleep 9999',
    "orphan of an orphan": '(setsid sh -c \'(setsid sh -c "$1" $0 &); exec sleep 9999\' $0 "$1" &); exec sleep 9999',
}


@pytest.mark.parametrize("shape", _SHAPES.values(), ids=_SHAPES.keys())
def test_kill_reaches_every_descendant(rig: Rig, shape: str) -> None:
    token = rig.sh(shape, "trap '' TERM; echo $$; exec sleep 9999")
    (pid,) = rig.pids(token)
    rig.wire.send(b"kill", token)
    assert rig.exit(token).value == signal.SIGKILL
    rig.gone(pid)
    rig.none_left()


@pytest.mark.parametrize("shape", _SHAPES.values(), ids=_SHAPES.keys())
def test_term_reaches_every_descendant_once(make_rig: Callable[..., Rig], shape: str) -> None:
    rig = make_rig(leftover_grace=9999.0)
    token = rig.sh(shape, "trap 'echo term' TERM; echo $$; while :; do sleep 9999 & wait; done")
    rig.pids(token)
    rig.wire.send(b"terminate", token, b"9999")
    assert rig.words(token, 2)[1] == "term"
    assert rig.exit(token).value == signal.SIGTERM
    rig.wire.send(b"stop", b"0")
    rig.wire.wait_closed()
    assert rig.output(token).count(b"term") == 1


def test_a_kill_touches_no_other_proc(rig: Rig) -> None:
    shape, script = _SHAPES["double fork"], "echo $$; exec sleep 9999"
    victim, bystander = rig.sh(shape, script), rig.sh(shape, script)
    (gone,), (kept,) = rig.pids(victim), rig.pids(bystander)
    rig.wire.send(b"kill", victim)
    rig.exit(victim)
    rig.gone(gone)
    assert running(kept)
    rig.wire.send(b"kill", bystander)
    rig.exit(bystander)


def test_a_process_whose_first_thread_has_ended_is_killed(rig: Rig) -> None:
    """It looks like a zombie, and only its other threads tell that it is none."""
    token = rig.python(
        "import ctypes, os, threading, time\n"
        "if os.fork(): time.sleep(9999)\n"
        "os.setsid()\n"
        "threading.Thread(target=time.sleep, args=(9999,)).start()\n"
        "print(os.getpid(), flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    (pid,) = rig.pids(token)
    until(lambda: "State:\tZ" in Path(f"/proc/{pid}/status").read_text(), "its first thread has ended")
    rig.wire.send(b"kill", token)
    rig.exit(token)
    rig.gone(pid)


# -- trees that fork while they are killed ----------------------------------------------------------------------------

_CHAIN = """
import os
if os.fork(): os.kill(os.getpid(), 19)
for generation in range(1_000_000):
    if generation == 50: print(os.getpid(), flush=True)
    if os.fork(): os._exit(0)
    os.setsid()
"""

_CHAIN_IN_C = """
#include <stdio.h>
#include <unistd.h>
int main(void) {
    if (fork()) { pause(); return 0; }
    for (long generation = 0; generation < 100000000; generation++) {
        if (generation == 50) { printf("%d\\n", getpid()); fflush(stdout); }
        if (fork()) _exit(0);
        setsid();
    }
    return 0;
}
"""

_BOMB_IN_C = """
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
int main(int n, char **argv) {
    int ready[2], width = 32;
    char byte;
    signal(SIGTERM, SIG_IGN);
    if (pipe(ready)) return 1;
    if (fork()) {
        while (width--) if (read(ready[0], &byte, 1) != 1) return 1;
        puts("going");
        fflush(stdout);
        if (n > 2) return 3;
        pause();
    }
    for (int doubling = 0; doubling < 5; doubling++) fork();
    if (write(ready[1], ".", 1) != 1) return 1;
    for (long generation = 0; generation < 100000000; generation++) if (fork()) _exit(0);
}
"""


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[str], str]:
    """Compiles a C program; its path."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")

    def compiled(source: str) -> str:
        (tmp_path / "program.c").write_text(source)
        subprocess.run([compiler, "-w", "-O1", "-o", tmp_path / "program", tmp_path / "program.c"], check=True)
        return str(tmp_path / "program")

    return compiled


def test_a_chain_of_forks_is_caught_up_with(rig: Rig) -> None:
    """Each process forks and exits, and the child leaves session and group before it does the same."""
    token = rig.python(_CHAIN)
    rig.pids(token)
    rig.wire.send(b"kill", token)
    assert rig.exit(token).value == signal.SIGKILL
    rig.none_left()


def test_a_chain_of_forks_in_c_is_caught_up_with(rig: Rig, compiled: Callable[[str], str]) -> None:
    token = rig.launch(compiled(_CHAIN_IN_C), rig.marker)
    rig.pids(token)
    rig.wire.send(b"kill", token)
    assert rig.exit(token).value == signal.SIGKILL
    rig.none_left()


@pytest.fixture
def room(rig: Rig) -> Iterator[None]:
    """As many processes as a bomb may have: without a bound it takes them from everybody on the machine."""
    with cgroup("pids") as group:
        group.add(rig.pid)
        group.limit_tasks(4000)
        yield
        group.limit_tasks(None)


@pytest.mark.usefixtures("room")
def test_a_fork_bomb_in_one_group_is_killed(rig: Rig, compiled: Callable[[str], str]) -> None:
    token = rig.launch(compiled(_BOMB_IN_C), rig.marker)
    rig.words(token)
    rig.wire.send(b"kill", token)
    assert rig.exit(token).value == signal.SIGKILL
    rig.none_left()


@pytest.mark.usefixtures("room")
def test_a_fork_bomb_that_outlives_its_leader_is_killed(rig: Rig, compiled: Callable[[str], str]) -> None:
    token = rig.launch(compiled(_BOMB_IN_C), rig.marker, "leave")
    assert rig.exit(token).value == 3
    assert rig.words(token) == ["going"]
    rig.none_left()


def test_what_nobody_can_be_told_to_own_ends_with_the_supervisor(rig: Rig) -> None:
    """A daemon that was quick and thorough: no parent, session, environment or sampled ancestry tells whose it is."""
    daemon = "(exec env -i setsid sh -c 'echo $$; exec sleep 9999' $0 &)"
    token = rig.sh(f"{daemon}; until test -s /proc/$$/fd/1; do :; done")
    rig.exit(token)
    (pid,) = rig.pids(token)
    rig.wire.barrier()
    rig.wire.send(b"stop", b"0")
    rig.wire.verb(b"bye")
    assert not running(pid)
