"""Gangs and resources from the command line, end to end, on a cluster that is there already: two CPUs, no GPU."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from cli_rig import running

#: Exits with 7 on SIGTERM if it is "gentle"; else goes on.
DYING = """
import os, signal, sys, time
def end(*_):
    print("asked to end", flush=True)
    if "gentle" in sys.argv:
        sys.exit(7)
signal.signal(signal.SIGTERM, end)
print("READY", os.environ["RANK"], flush=True)
while True:
    time.sleep(9999)
"""


def shell(script: str) -> list[str]:
    return ["--", "sh", "-c", script]


def dying(how: str) -> list[str]:
    return ["--", sys.executable, "-I", "-S", "-c", DYING, how]


def test_a_gang_finds_what_torchrun_sets(env: dict[str, str]) -> None:
    script = "echo $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $GROUP_RANK ${MASTER_ADDR:+there} $OTHER"
    with running("-j", "2x2", "-e", "OTHER=x", *shell(script), env=env) as run:
        assert run.ended() == 0
    assert sorted(run.out.decode().splitlines()) == [
        "[0] 0 0 4 2 0 there x",
        "[1] 1 1 4 2 0 there x",
        "[2] 2 0 4 2 1 there x",
        "[3] 3 1 4 2 1 there x",
    ]
    assert run.err == b""


def test_the_first_failure_ends_the_gang_and_is_told_last_with_its_node(env: dict[str, str], tmp_path: Path) -> None:
    script = f"""
    touch {tmp_path}/$RANK
    [ $RANK = 1 ] || exec sleep 9999
    until [ -e {tmp_path}/0 ] && [ -e {tmp_path}/2 ]; do sleep 0.05; done
    echo first >&2; echo why >&2; exit 5"""
    with running("-j", "1x3", *shell(script), env=env) as run:
        assert run.ended() == 5
    address = env["RAY_ADDRESS"].rpartition(":")[0]
    assert run.says[-3:] == [f"ray-launcher: rank 1 of 3 on {address}: exited with code 5", "  first", "  why"]


def test_a_signal_that_killed_the_first_is_the_exit_code(env: dict[str, str]) -> None:
    with running("-j", "1x2", *shell("[ $RANK = 1 ] && kill -SEGV $$; exec sleep 9999"), env=env) as run:
        assert run.ended() == 128 + signal.SIGSEGV
    assert "rank 1 of 2" in run.says[-1]
    assert "killed by SIGSEGV" in run.says[-1]


def test_ranks_that_do_not_heed_the_end_of_the_gang_are_killed_after_the_grace(env: dict[str, str]) -> None:
    script = "[ $RANK = 1 ] && exit 5; trap '' TERM; while :; do sleep 1; done"
    with running("-j", "1x2", "--grace", "0.5", *shell(script), env=env) as run:
        assert run.ended() == 5
    assert "rank 1 of 2" in run.says[-1]


def test_without_fail_fast_the_others_run_on_and_all_failures_are_told(env: dict[str, str], tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"[ $RANK = 2 ] && exit 5; until [ -e {go} ]; do sleep 0.05; done; [ $RANK = 1 ] && exit 6; exit 0"
    with running("-j", "1x3", "--no-fail-fast", *shell(script), env=env) as run:
        run.sees("rank 2: exited with code 5; 2 others run on")
        go.touch()
        assert run.ended() == 5
    assert "2 of 3 ranks failed (1, 2), the first of them rank 2 on " in run.says[-1]


def test_the_first_interrupt_terminates_a_gang(env: dict[str, str]) -> None:
    with running("-j", "1x2", *dying("gentle"), env=env) as run:
        run.sees("READY 0", "READY 1")
        run.interrupt()
        assert run.ended() == 7
    assert sorted(run.out.splitlines()[2:]) == [b"[0] asked to end", b"[1] asked to end"]
    assert run.says == ["ray-launcher: terminating 2 procs, Ctrl-C again to kill"]


def test_the_second_interrupt_kills_a_gang(env: dict[str, str]) -> None:
    with running("-j", "1x2", "--grace", "inf", *dying("stubborn"), env=env) as run:
        run.sees("READY 0", "READY 1")
        run.interrupt()
        run.sees("[0] asked to end", "[1] asked to end")
        run.interrupt()
        assert run.ended() == 128 + signal.SIGKILL
    assert run.says == ["ray-launcher: terminating 2 procs, Ctrl-C again to kill", "ray-launcher: killing 2 procs"]


def test_a_gang_has_as_many_ranks_as_there_are_cpus_when_asked_so(env: dict[str, str]) -> None:
    with running("--nproc-per-node", "cpu", *shell("echo $RANK/$WORLD_SIZE"), env=env) as run:
        assert run.ended() == 0
    assert sorted(run.out.splitlines()) == [b"[0] 0/2", b"[1] 1/2"]


def test_gpus_that_the_cluster_does_not_have_are_missed_at_once(env: dict[str, str]) -> None:
    with running("-j", "1xgpu", *shell("exit"), env=env) as run:
        assert run.ended() == 125
    (said,) = run.says
    assert "no node of the cluster that suits has any GPU" in said


def test_what_a_launch_waits_for_is_said_once_and_the_start_timeout_ends_it(env: dict[str, str]) -> None:
    with running("-j", "1x2", "--cpus", "8", "--start-timeout", "4", *shell("exit"), env=env) as run:
        assert run.ended() == 125
    waiting, failed = run.says
    assert "waiting: 2 of 2 ranks: needs CPU 16; no node is that large" in waiting
    assert "failed: the resources were not there within 4 s: needs CPU 16" in failed
    assert run.out == b""


def test_an_interrupt_ends_the_waiting_and_nothing_is_started(env: dict[str, str]) -> None:
    with running("-n", "2", "--resources", "nobody_has_it=1", *shell("echo started"), env=env) as run:
        run.sees("waiting: 2 of 2 ranks: needs nobody_has_it 1")
        run.interrupt()
        assert run.ended() == 128 + signal.SIGINT
    assert run.out == b""


def test_a_node_may_be_named_by_its_address(env: dict[str, str]) -> None:
    address = env["RAY_ADDRESS"].rpartition(":")[0]
    with running("--node", address, *shell("echo here"), env=env) as run:
        assert run.ended() == 0
    assert run.out == b"here\n"


def test_an_address_that_no_node_has_is_answered_with_the_nodes(env: dict[str, str]) -> None:
    with running("--node", "203.0.113.9", *shell("exit"), env=env) as run:
        assert run.ended() == 125
    (said,) = run.says
    assert "no living node has the address 203.0.113.9; the cluster's nodes are " in said
    assert f"({env['RAY_ADDRESS'].rpartition(':')[0]})" in said


def test_a_reader_that_goes_away_ends_a_gang_quietly(env: dict[str, str]) -> None:
    reading, writing = os.pipe()
    script = "seq 1000000; exec sleep 9999"
    with os.fdopen(writing, "wb") as stdout, running("-j", "1x2", *shell(script), env=env, stdout=stdout) as run:
        stdout.close()
        assert os.read(reading, 6) in (b"[0] 1\n", b"[1] 1\n")
        os.close(reading)
        assert run.ended() == 128 + signal.SIGPIPE
    assert run.err == b""


def test_what_fails_is_started_again_and_all_of_its_output_is_shown(env: dict[str, str]) -> None:
    script = "echo start $RAY_LAUNCHER_RESTART_COUNT; exit $((6 + $RAY_LAUNCHER_RESTART_COUNT))"
    with running("--max-restarts", "2", "--restart-delay", "0", *shell(script), env=env) as run:
        assert run.ended() == 8
    assert run.out.decode().splitlines() == ["start 0", "start 1", "start 2"]
    assert run.says == []


def test_a_restart_that_is_waited_for_is_announced(env: dict[str, str]) -> None:
    script = "test $TORCHELASTIC_RESTART_COUNT = 1 || exit 3"
    with running("-j", "1x2", "--max-restarts", "1", "--restart-delay", "3", *shell(script), env=env) as run:
        assert run.ended() == 0
    assert "ray-launcher: waiting: 2 of 2 ranks: restart 1 of 1 after 3 s: rank 0 exited with code 3" in [
        line.replace("rank 1 exited", "rank 0 exited") for line in run.says
    ]


def test_a_gang_takes_the_nodes_that_there_are(env: dict[str, str]) -> None:
    script = "echo $WORLD_SIZE"
    with running("--nnodes", "1:3", "--strategy", "STRICT_SPREAD", *shell(script), env=env) as run:
        assert run.ended() == 0
    assert run.out.decode().splitlines() == ["[0] 1"]
    assert [line for line in run.says if "waiting" not in line] == []  # where the start takes its time, it says so
