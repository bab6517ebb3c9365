"""The command from end to end, on a cluster that is there already."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import DEADLINE, OwnRay, Run, running
from leaks import leaving_nothing
from node_rig import until

#: Prints READY; on SIGTERM says so, waits for the file that is its argument if it has one, and exits with 7.
DYING = """
import os, signal, sys, time
def end(*_):
    print("dying words", flush=True)
    print("last error", file=sys.stderr, flush=True)
    while len(sys.argv) > 1 and not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
print("READY", os.environ["RAY_LAUNCHER_RANK"], flush=True)
time.sleep(9999)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("refused", flush=True))
print("READY", flush=True)
while True:
    time.sleep(9999)
"""
#: More than a pipe holds.
LONG = "seq 1000000; exec sleep 9999"


def python(script: str, *args: str) -> list[str]:
    return ["--", sys.executable, "-I", "-S", "-c", script, *args]


def shell(script: str) -> list[str]:
    return ["--", "sh", "-c", script]


def test_output_is_shown_while_the_program_runs_and_a_large_one_is_complete(
    env: dict[str, str], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    script = f"printf READY; until [ -e {go} ]; do sleep 0.05; done; head -c 30000000 /dev/zero"
    with running(*shell(script), env=env) as run:
        run.sees("READY")
        go.touch()
        assert run.ended() == 0
    assert run.out == b"READY" + bytes(30_000_000)
    assert run.err == b""


def test_a_time_limit_ends_the_program_and_is_told_with_how_it_ended(env: dict[str, str]) -> None:
    with running(
        "--time-limit", "1.5", "--signal", "USR1@0.5", *shell("trap '' USR1; exec sleep 9999"), env=env
    ) as run:
        assert run.ended() == 128 + signal.SIGTERM
    ahead = "SIGUSR1 sent 0.5 s before the time limit of 1.5 s"
    (said,) = run.says
    assert f"the program was killed by SIGTERM; {ahead}; time limit of 1.5 s reached: SIGTERM sent" in said


def test_a_program_that_ends_well_at_its_time_limit_is_told_too(env: dict[str, str]) -> None:
    script = "trap 'exit 0' TERM; while :; do sleep 9999 & wait; done"
    with running("--time-limit", "1.5", "-n", "2", *shell(script), env=env) as run:
        assert run.ended() == 0
    (said,) = run.says
    assert "of 2: exited with code 0; time limit of 1.5 s reached: SIGTERM sent; so of 2 of 2 ranks in all" in said


def test_limits_reach_the_program_and_one_that_cannot_be_had_is_named(env: dict[str, str]) -> None:
    limits = ("--bind", "cpus=0", "--rlimit", "nofile=100:200", "--umask", "027", "--nice", "5")
    script = "grep Cpus_allowed_list /proc/self/status; ulimit -n; ulimit -Hn; umask; nice"
    with running(*limits, *shell(script), env=env) as run:
        assert run.ended() == 0
    assert run.out == b"Cpus_allowed_list:\t0\n100\n200\n0027\n5\n"
    with running("--bind", "cpus=4095", *shell("exit"), env=env) as run:
        assert run.ended() == 125
    assert "ProcBind.cpus='4095': no CPU 4095 here" in run.err.decode()


def test_of_several_procs_lines_bear_their_rank_and_the_first_to_fail_is_told(
    env: dict[str, str], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    script = f"""
    echo "out $RAY_LAUNCHER_RANK/$RAY_LAUNCHER_NPROCS"; seq 50000; printf end
    [ $RAY_LAUNCHER_RANK = 2 ] && {{ echo why >&2; exit 5; }}
    until [ -e {go} ]; do sleep 0.05; done
    [ $RAY_LAUNCHER_RANK = 0 ] && exit 9; exit 0"""
    with running("-n", "3", "--name", "job", *shell(script), env=env) as run:
        run.sees("rank 2: exited with code 5; 2 others run on")
        go.touch()
        assert run.ended() == 5
    lines = run.out.decode().splitlines()
    for rank in range(3):
        own = [line.removeprefix(f"[{rank}] ") for line in lines if line.startswith(f"[{rank}] ")]
        assert own == [f"out {rank}/3", *map(str, range(1, 50001)), "end"]
    assert len(lines) == 3 * 50002
    assert run.says == [
        "[2] why",
        "ray-launcher: rank 2: exited with code 5; 2 others run on",
        "ray-launcher: 2 of 3 ranks failed (0, 2), the first of them rank 2: exited with code 5",
        "  why",
    ]


FAILURES = {
    "missing": (["--", "no-such-program"], 127, "program not found"),
    "data": (["--", "/etc/passwd"], 126, "not executable"),
    "nowhere": (["--cwd", "/no/such/place", "--", "true"], 125, "'/no/such/place' does not exist"),
    "crash": (shell("kill -SEGV $$"), 139, "the program was killed by SIGSEGV"),
}
BYTES = r"printf '\377\000a\r\n\n b'; printf '\033[1mc' >&2; exit 3"


@contextlib.contextmanager
def at_once(runs: dict[str, Run]) -> Iterator[dict[str, Run]]:
    """All of them are under way at the same time, since each takes seconds."""
    try:
        yield runs
    finally:
        for run in runs.values():
            run.stop()


@pytest.fixture(scope="module")
def ended(own_ray: OwnRay) -> Iterator[dict[str, Run]]:
    """Commands that have ended by themselves."""
    env = own_ray.environ()
    with leaving_nothing(), Path("/dev/full").open("wb") as full:
        runs = {name: Run(*args, env=env) for name, (args, _, _) in FAILURES.items()}
        runs |= {"bytes": Run(*shell(BYTES), env=env), "full": Run(*shell("echo x; sleep 9999"), env=env, stdout=full)}
        with at_once(runs):
            for run in runs.values():
                run.process.wait(DEADLINE)
            yield runs


@pytest.fixture(scope="module")
def told_to_end(own_ray: OwnRay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """Commands with signals sent to them."""
    env, go = own_ray.environ(), tmp_path_factory.mktemp("told") / "go"
    runs = {
        "once": Run("-n", "2", *python(DYING), env=env),
        "twice": Run("--grace", "inf", *python(STUBBORN), env=env),
        "slow to end": Run("--grace", "0.2", *python(STUBBORN), env=env),
        "signals": Run(*python(DYING, str(go)), env=env),
    }
    with leaving_nothing(), at_once(runs):
        runs["once"].sees("READY 0", "READY 1")
        for run in runs.values():
            run.sees("READY")
            run.interrupt(signal.SIGTERM if run is runs["signals"] else signal.SIGINT)
        runs["twice"].sees("refused")
        runs["twice"].interrupt()
        runs["signals"].sees("dying words")
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            runs["signals"].interrupt(number)
        go.touch()
        yield runs


def test_one_procs_output_is_passed_on_byte_for_byte_with_its_exit_code(ended: dict[str, Run]) -> None:
    assert ended["bytes"].ended() == 3
    assert ended["bytes"].out == b"\xff\x00a\r\n\n b"
    assert ended["bytes"].err == b"\x1b[1mc"


@pytest.mark.parametrize("name", FAILURES)
def test_what_the_program_cannot_say_itself_is_said_in_one_line(ended: dict[str, Run], name: str) -> None:
    _, code, words = FAILURES[name]
    run = ended[name]
    assert run.ended() == code
    assert len(run.says) == 1
    assert words in run.says[0]
    assert run.out == b""


def test_output_that_cannot_be_written_is_an_error_of_the_launcher(ended: dict[str, Run]) -> None:
    assert ended["full"].ended() == 125
    assert ended["full"].says == ["ray-launcher: cannot write output: No space left on device"]


def test_the_first_interrupt_terminates_and_shows_the_dying_words(told_to_end: dict[str, Run]) -> None:
    run = told_to_end["once"]
    assert run.ended() == 7
    assert sorted(run.out.splitlines()[2:]) == [b"[0] dying words", b"[1] dying words"]
    said = ["[0] last error", "[1] last error", "ray-launcher: terminating 2 procs, Ctrl-C again to kill"]
    assert sorted(run.says) == said


def test_the_second_interrupt_kills(told_to_end: dict[str, Run]) -> None:
    run = told_to_end["twice"]
    assert run.ended() == 128 + signal.SIGKILL
    assert run.says == ["ray-launcher: terminating 1 proc, Ctrl-C again to kill", "ray-launcher: killing 1 proc"]


def test_a_proc_that_outlives_the_grace_is_killed_and_that_is_said(told_to_end: dict[str, Run]) -> None:
    run = told_to_end["slow to end"]
    assert run.ended() == 128 + signal.SIGKILL
    assert run.says[1:] == ["ray-launcher: killed 1 proc that had not ended after 0.2 s"]


def test_sigterm_and_sighup_terminate_and_never_kill(told_to_end: dict[str, Run]) -> None:
    run = told_to_end["signals"]
    assert run.ended() == 7
    assert run.says.count("ray-launcher: terminating 1 proc, Ctrl-C again to kill") == 1
    assert len(run.says) == 2


def test_a_reader_that_goes_away_ends_the_procs_quietly(env: dict[str, str]) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as stdout, running("-n", "2", *shell(LONG), env=env, stdout=stdout) as run:
        stdout.close()
        assert os.read(reading, 6) in (b"[0] 1\n", b"[1] 1\n")
        os.close(reading)
        assert run.ended() == 128 + signal.SIGPIPE
    assert run.err == b""


def again(run: Run) -> bool:
    """Interrupt it once more; whether it has ended."""
    run.interrupt()
    return run.process.poll() is not None


def test_further_interrupts_end_the_waiting_for_a_reader_that_does_not_read(env: dict[str, str]) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as stdout, running(*shell(LONG), env=env, stdout=stdout) as run:
        assert os.read(reading, 4) == b"1\n2\n"
        run.interrupt()
        run.sees("terminating")
        until(lambda: again(run), "the end", DEADLINE)
        assert run.ended() in (128 + signal.SIGTERM, 128 + signal.SIGKILL)
    os.close(reading)


def test_a_running_local_cluster_is_found(own_ray: OwnRay, env: dict[str, str], short_dir: Path) -> None:
    (short_dir / "ray").mkdir()
    (short_dir / "ray" / "ray_current_cluster").write_text(own_ray.address)
    unnamed = {name: value for name, value in env.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    with running(*shell('echo "$RAY_ADDRESS"; exit 4'), env={**unnamed, "RAY_TMPDIR": str(short_dir)}) as run:
        assert run.ended() == 4
    assert not list((short_dir / "ray").glob("session_*")), "it has started a Ray of its own"
    assert run.err == b""


def test_the_installed_command_is_this_one() -> None:
    script = Path(sys.executable).with_name("ray-launcher")
    if not script.exists():
        pytest.skip("the package is not installed")
    assert "ray_launcher.cli.main" in script.read_text()
