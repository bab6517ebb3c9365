"""Ctrl-C as a user presses it, and the live line, in a real terminal."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import COMMAND
from terminal_rig import Terminal

if shutil.which("tmux") is None:
    pytest.skip("tmux is not installed", allow_module_level=True)

PROGRAM = """
import signal, sys, time
def end(*_):
    print("dying words" if "gentle" in sys.argv else "refused", flush=True)
    if "gentle" in sys.argv:
        sys.exit(7)
signal.signal(signal.SIGTERM, end)
print("READY", flush=True)
while True:
    time.sleep(9999)
"""


@pytest.fixture
def terminal(env: dict[str, str], short_dir: Path) -> Iterator[Terminal]:
    (short_dir / "prog.py").write_text(PROGRAM)
    terminal = Terminal(short_dir, env)
    yield terminal
    terminal.close()


def typed(*options: str, how: str) -> str:
    words = [*COMMAND, *options, "--", sys.executable, "-I", "-S", "prog.py", how]
    return shlex.join(words) + "; echo code=$?"


def test_control_c_terminates_with_grace_and_the_last_output_is_shown(terminal: Terminal) -> None:
    terminal.keys(typed(how="gentle"), "Enter")
    terminal.sees("READY")
    terminal.keys("C-c")
    terminal.sees("code=7")
    assert terminal.lines() == [
        "shell",
        "READY",
        "ray-launcher: terminating 1 proc, Ctrl-C again to kill",
        "dying words",
        "code=7",
    ]


def test_control_c_twice_kills(terminal: Terminal) -> None:
    terminal.keys(typed("--grace", "inf", "-n", "2", how="stubborn"), "Enter")
    terminal.sees("[0] READY")
    terminal.sees("[1] READY")
    terminal.keys("C-c")
    terminal.sees("[0] refused")
    terminal.sees("[1] refused")
    terminal.keys("C-c")
    terminal.sees("code=137")
    assert terminal.lines()[-2:] == ["ray-launcher: killing 2 procs", "code=137"]


def test_a_gangs_progress_is_shown_below_its_output_and_is_gone_at_the_end(terminal: Terminal) -> None:
    terminal.keys(typed("-j", "1x2", how="gentle"), "Enter")
    terminal.sees("[1] READY")
    terminal.sees("ray-launcher: 2 of 2 run, 0 ended")
    assert terminal.lines()[-1] == "ray-launcher: 2 of 2 run, 0 ended"
    terminal.keys("C-c")
    terminal.sees("code=7")
    words = ["READY", "READY", "dying words", "dying words"]
    assert sorted(line.partition("] ")[2] for line in terminal.lines() if line.startswith("[")) == words
    assert [line for line in terminal.lines() if not line.startswith("[")] == [
        "shell",
        "ray-launcher: terminating 2 procs, Ctrl-C again to kill",
        "code=7",
    ]


def test_what_a_launch_waits_for_is_shown_until_it_is_over(terminal: Terminal, env: dict[str, str]) -> None:
    terminal.keys(typed("--resources", "none=1", "--start-timeout", "8", how="gentle"), "Enter")
    address = env["RAY_ADDRESS"].rpartition(":")[0]
    missing = f"needs none 1; no node is that large: the largest, {address}, has 0 none"
    terminal.sees(f"ray-launcher: waiting: {missing}")
    terminal.sees("code=125")
    over = f"ray-launcher: the resources were not there within 8 s: {missing}"
    assert terminal.lines() == ["shell", over, "code=125"]
