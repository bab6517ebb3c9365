"""The lease: procs of a node that nobody hears of end before anybody is told that they are dead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
from node_rig import Rig, running, until

#: Seconds between TERM and KILL when the lease has run out.
GRACE = 1.0


def lease(rig: Rig, seconds: float) -> None:
    rig.wire.send(b"lease", b"%r" % (time.monotonic() + seconds))


def test_procs_end_when_the_lease_has_run_out(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(end_grace=9999.0)
    polite = rig.sh("trap 'exit 42' TERM; echo $$; while :; do sleep 9999 & wait; done")
    stubborn = rig.sh("trap '' TERM; echo $$; exec sleep 9999")
    for token in (polite, stubborn):
        rig.pids(token)
    lease(rig, 0.3)
    assert rig.exit(polite).value == 42
    assert rig.exit(stubborn).value == signal.SIGKILL
    rig.wire.verb(b"bye")
    rig.wait_end()


def test_a_lease_that_is_renewed_in_time_does_not_run_out(rig: Rig) -> None:
    token = rig.sh("echo $$; exec sleep 9999")
    (pid,) = rig.pids(token)
    for _ in range(20):
        lease(rig, 1.0)
        rig.wire.barrier()
        time.sleep(0.1)  # twice as long as the lease, in all: a clock is what this is about
    assert running(pid)
    lease(rig, 60)


def test_the_last_word_about_the_lease_holds(rig: Rig) -> None:
    token = rig.sh("echo $$; exec sleep 9999")
    (pid,) = rig.pids(token)
    lease(rig, 0.2)
    rig.wire.send(b"lease", b"inf")
    time.sleep(0.5)  # longer than the first lease
    rig.wire.barrier()
    assert running(pid)


def test_a_lease_outlives_its_agent(make_rig: Callable[..., Rig]) -> None:
    """Whoever granted it counts on its end, also where the agent is gone by then."""
    rig = make_rig(orphan_grace=9999.0)
    (pid,) = rig.pids(rig.sh("echo $$; exec sleep 9999"))
    lease(rig, 0.3)
    rig.wire.barrier()
    rig.wire.close()
    rig.gone(pid)
    rig.wait_end()


def test_the_guard_kills_a_supervisor_that_is_stuck_when_the_lease_runs_out_and_all_its_procs(rig: Rig) -> None:
    escaped = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    print(os.getpid(), flush=True)\ntime.sleep(9999)"
    )
    (leader,) = rig.pids(rig.sh("trap '' TERM; echo $$; exec sleep 9999"))
    (child,) = rig.pids(rig.python(escaped))
    lease(rig, 0.5)
    rig.wire.barrier()
    os.kill(rig.pid, signal.SIGSTOP)
    rig.gone(leader, child, rig.pid, rig.guard)
    rig.none_left()


def test_no_lease_no_end(rig: Rig) -> None:
    (pid,) = rig.pids(rig.sh("echo $$; exec sleep 9999"))
    rig.wire.barrier()
    assert running(pid)
    assert until(lambda: running(rig.guard), "the guard is there")


@pytest.mark.parametrize("words", [b"soon", b"", b"-1", b"nan"])
def test_a_lease_that_is_no_time_costs_the_connection_only(rig: Rig, words: bytes) -> None:
    (pid,) = rig.pids(rig.sh("echo $$; exec sleep 9999"))
    rig.wire.send(b"lease", words)
    rig.wire.wait_closed()
    rig.connect()
    rig.wire.barrier()
    assert running(pid)
