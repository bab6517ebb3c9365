"""`exec`: a command in a living proc's surroundings, and `attach`; as processes, and in a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import DEADLINE, LAUNCHER, Run, running
from node_rig import running as lives
from node_rig import until
from terminal_rig import Terminal

SLEEPS = "echo READY; exec sleep 9999"


@contextlib.contextmanager
def target(env: dict[str, str], script: str = SLEEPS, *options: str) -> Iterator[Run]:
    """`run`, whose one proc is target/0 and has said READY; it ends with the block."""
    with running("--name", "target", "--grace", "0", *options, "--", "sh", "-c", script, env=env) as run:
        run.sees("READY")
        try:
            yield run
        finally:
            run.interrupt()
            run.ended()


def executed(*args: str, env: dict[str, str]) -> tuple[int, str, str]:
    command = [*LAUNCHER, "exec", *args]
    found = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE, check=False, text=True
    )
    return found.returncode, found.stdout, found.stderr


def pid_in(run: Run) -> int:
    """The first line that it has written."""
    until(lambda: b"\n" in run.out, "a pid", DEADLINE)
    return int(run.out.split(b"\n")[0])


# -- exec ---------------------------------------------------------------------------------------------------------


def test_a_command_has_the_procs_surroundings_and_its_own_exit_code(env: dict[str, str]) -> None:
    with target(env, f"cd /usr; {SLEEPS}", "-e", "A=theirs", "-e", "B=theirs"):
        show = 'pwd; echo "$A $B"; echo err >&2; exit 7'
        done = executed("-e", "B=ours", "target/0", "--", "sh", "-c", show, env=env)
        assert done == (7, "/usr\ntheirs ours\n", "err\n")
        assert executed("--cwd", "lib", "target/0", "pwd", env=env) == (0, "/usr/lib\n", "")
        code, _, said = executed("target/0", "--", "/nonexistent", env=env)
        assert (code, said) == (127, "ray-launcher: /nonexistent: program not found on the node\n")


@pytest.mark.slow
def test_control_c_ends_the_command_and_not_the_proc(env: dict[str, str]) -> None:
    with target(env) as run:
        with running(
            "target/0",
            "--",
            "sh",
            "-c",
            "trap 'echo bye; exit 5' TERM; echo READY; while :; do sleep 0.05; done",
            env=env,
            verb="exec",
        ) as command:
            command.sees("READY")
            command.interrupt()
            assert command.ended() == 5
            assert command.says[0] == "ray-launcher: terminating 1 proc, Ctrl-C again to kill"
        assert run.process.poll() is None
        assert executed("target/0", "true", env=env) == (0, "", "")


@pytest.mark.slow
def test_a_command_ends_with_its_command_line(env: dict[str, str]) -> None:
    with (
        target(env),
        running("target/0", "--", "sh", "-c", "echo $$; exec sleep 9999", env=env, verb="exec") as command,
    ):
        pid = pid_in(command)
        command.process.kill()
        until(lambda: not lives(pid), "it has ended", DEADLINE)


@pytest.mark.slow
def test_a_command_ends_with_the_session_and_not_with_the_proc(env: dict[str, str]) -> None:
    with running("--name", "target", "--grace", "0", "-n", "2", "--", "sh", "-c", SLEEPS, env=env) as run:
        run.sees("[0] READY", "[1] READY")
        with running("target/0", "--", "sh", "-c", "echo $$; exec sleep 9999", env=env, verb="exec") as command:
            pid = pid_in(command)
            end_target(env)
            run.sees("rank 0: killed by SIGKILL; 1 other runs on")
            assert lives(pid)
            run.interrupt()
            run.ended()
            assert command.ended() == 128 + signal.SIGTERM


def end_target(env: dict[str, str]) -> None:
    """SIGKILL the leader of target/0."""
    shown = subprocess.run(
        [*LAUNCHER, "inspect", "target/0"], env=env, capture_output=True, timeout=DEADLINE, check=True, text=True
    )
    os.kill(json.loads(shown.stdout)[0]["pid"], signal.SIGKILL)


@pytest.mark.slow
def test_what_cannot_be_joined_is_refused(env: dict[str, str]) -> None:
    with target(env, SLEEPS, "-n", "1"):
        assert executed("targ/0", "true", env=env)[0::2] == (
            125,
            "ray-launcher: no proc, gang or run 'targ/0': did you mean 'target/0' or 'target'?\n",
        )
        code, _, said = executed("-t", "target/0", "true", env=env)
        assert (code, said.splitlines()[-1]) == (
            125,
            "Error: -t is for a terminal, and our stdin is none; leave -t out, as in a pipe",
        )
        code, _, said = executed("target/0", "--", env=env)
        assert (code, "COMMAND is missing" in said) == (125, True)


# -- attach -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_attached_one_sees_what_is_written_from_now_on_and_has_the_exit_code(
    env: dict[str, str], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"echo READY; while read -r line; do echo out $line; echo err $line >&2; done <'{gate}'; exit 6"
    with target(env, script) as run, open(gate, "w", buffering=1, encoding="ascii") as pipe:
        pipe.write("1\n")
        run.sees("out 1", "err 1")
        with running("target/0", env=env, verb="attach") as attached:
            until(lambda: _wrote(attached, pipe), "it is shown", DEADLINE)
            pipe.close()
            assert attached.ended() == 6
            assert b"READY" not in attached.out
            assert b"err" in attached.err


def _wrote(attached: Run, pipe: object) -> bool:
    pipe.write("more\n")  # type: ignore[attr-defined]
    return b"out more\n" in attached.out


@pytest.mark.slow
def test_control_c_leaves_an_attached_one_and_says_so(env: dict[str, str]) -> None:
    with target(env, "echo READY; while :; do echo on; sleep 0.05; done") as run:
        with running("target/0", env=env, verb="attach") as attached:
            attached.sees("on")
            attached.interrupt()
            assert attached.ended() == 130
            assert attached.says == ["ray-launcher: detached from target/0, which runs on"]
        assert run.process.poll() is None


@pytest.mark.slow
def test_an_attached_one_can_write_too(env: dict[str, str]) -> None:
    reader, writer = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        run = stack.enter_context(
            running("--name", "target", "-i", "--", "sh", "-c", "echo READY; cat; exit 4", env=env, stdin=reader)
        )
        run.sees("READY")
        attached = stack.enter_context(running("-i", "target/0", env=env, verb="attach", stdin=subprocess.PIPE))
        assert attached.process.stdin is not None
        attached.process.stdin.write(b"from elsewhere\n")
        attached.process.stdin.close()
        assert run.ended() == 4
        assert attached.ended() == 4
        assert run.out == b"READY\nfrom elsewhere\n"


# -- in a terminal ------------------------------------------------------------------------------------------------

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


@pytest.fixture
def terminal(env: dict[str, str], short_dir: Path) -> Iterator[Terminal]:
    terminal = Terminal(short_dir, env)
    terminal.keys("stty -a >before", "Enter")
    yield terminal
    terminal.close()


def typed(verb: str, *words: str) -> str:
    return shlex.join([*LAUNCHER, verb, *words]) + "; echo code=$?"


def sane(terminal: Terminal) -> None:
    terminal.keys("stty -a | grep -v columns >after; grep -v columns before | cmp - after && echo as before", "Enter")
    until(lambda: "as before" in terminal.lines(), "the terminal is as it was", DEADLINE)


@needs_tmux
def test_a_shell_in_a_proc_has_keys_sizes_and_control_c(env: dict[str, str], terminal: Terminal) -> None:
    with target(env):
        terminal.keys(typed("exec", "-it", "-e", "PS1=", "target/0", "--", "sh"), "Enter")
        terminal.keys("stty -echo; stty size; tty | cut -c 1-9", "Enter")
        terminal.sees("50 200")
        terminal.sees("/dev/pts/")
        terminal.resize(120, 40)
        terminal.keys("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.05; done; echo resized", "Enter")
        terminal.sees("resized")
        terminal.keys("sh -c 'trap \"echo interrupted; exit\" INT; echo waits; while :; do sleep 0.05; done'", "Enter")
        terminal.sees("waits")
        terminal.keys("C-c")
        terminal.sees("interrupted")
        terminal.keys("exit 9", "Enter")
        terminal.sees("code=9")
        sane(terminal)


@pytest.mark.slow
@needs_tmux
def test_a_terminal_is_put_back_when_the_command_line_is_told_to_end(
    env: dict[str, str], terminal: Terminal, short_dir: Path
) -> None:
    with target(env):
        words = shlex.join([*LAUNCHER, "exec", "-it", "target/0", "--", "sh", "-c", "echo READY; exec cat"])
        terminal.keys(f"sh -c {shlex.quote(f'echo $$ >pid; exec {words}')}; echo code=$?", "Enter")
        terminal.sees("READY")
        os.kill(int((short_dir / "pid").read_text()), signal.SIGTERM)
        terminal.sees("code=143")
        sane(terminal)


@pytest.mark.slow
@needs_tmux
def test_a_shell_that_heeds_no_sigterm_ends_when_its_window_is_closed(env: dict[str, str], terminal: Terminal) -> None:
    with target(env) as run:
        terminal.keys(typed("exec", "-it", "--grace", "inf", "target/0", "--", "bash", "--norc"), "Enter")
        terminal.keys("trap '' TERM; echo pid=$$", "Enter")
        until(lambda: _pids(terminal), "a pid", DEADLINE)
        [pid] = _pids(terminal)
        terminal.hang_up()
        until(lambda: not lives(pid), "the shell has ended", DEADLINE)
        assert run.process.poll() is None


def _pids(terminal: Terminal) -> list[int]:
    return [int(line.removeprefix("pid=")) for line in terminal.lines() if line.removeprefix("pid=").isdigit()]


@pytest.mark.slow
@needs_tmux
def test_the_keys_of_docker_leave_an_attached_terminal(env: dict[str, str], terminal: Terminal) -> None:
    terminal.keys(typed("run", "-it", "--name", "inner", "--", "sh", "-c", "echo READY; cat"), "Enter")
    terminal.sees("READY")
    reader, writer = os.openpty()
    try:
        with running("-i", "inner/0", env=env, verb="attach", stdin=writer) as attached:
            until(lambda: _typed(reader, attached), "what is typed here is seen", DEADLINE)
            os.write(reader, b"\x10x\x10\x11")
            assert attached.ended() == 0
            assert attached.says == ["ray-launcher: detached from inner/0, which runs on"]
    finally:
        os.close(reader)
        os.close(writer)
    terminal.keys("C-c")
    terminal.sees("code=130")
    sane(terminal)


def _typed(reader: int, attached: Run) -> bool:
    os.write(reader, b"k")
    return b"k" in attached.out
