"""`ray-launcher top`: once in a pipe, live on a terminal, which is as it was afterwards."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import DEADLINE, OwnRay
from held_session import held, told, verb
from node_rig import until
from terminal_rig import Terminal

BUSY = f"exec {sys.executable} -I -S -c 'while True: pass'"
IDLE = "sleep 9999 & sleep 9999"
TOP = [sys.executable, "-m", "ray_launcher", "top", "--interval", "0.5"]


@pytest.fixture(scope="module")
def session(own_ray: OwnRay) -> Iterator[dict[str, str]]:
    """Two procs of the session `watched`; the environment for commands."""
    env = own_ray.environ()
    with held(env, "watched", {"busy": BUSY, "idle/0": IDLE, "idle/1": IDLE}):
        yield env


@pytest.fixture
def terminal(session: dict[str, str], short_dir: Path) -> Iterator[Terminal]:
    terminal = Terminal(short_dir, session)
    yield terminal
    terminal.close()


needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


def test_the_busiest_is_first_and_trees_are_whole(session: dict[str, str]) -> None:
    found = told(session, "top", "--interval", "0.5")
    assert found[0]["proc_id"] == "busy"
    assert found[0]["cpu_percent"] > 20
    assert {each["proc_id"]: each["processes"] for each in found} == {"busy": 1, "idle/0": 3, "idle/1": 3}
    assert all(each["memory"] > 1 << 19 and each["state"] == "RUNNING" for each in found)


@pytest.mark.slow
def test_in_a_pipe_it_is_a_table_told_once(session: dict[str, str]) -> None:
    lines = verb(session, "top", "--interval", "0.3").stdout.splitlines()
    assert lines[0].split() == ["PROC", "STATE", "AGE", "NODE", "CPU", "%", "MEMORY", "PROCESSES"]
    assert lines[1].split()[0] == "busy"
    assert sorted(line.split()[0] for line in lines[2:]) == ["idle/0", "idle/1"]  # who of them has more is their affair


@pytest.mark.slow
def test_targets_choose(session: dict[str, str]) -> None:
    assert {each["proc_id"] for each in told(session, "top", "idle", "--interval", "0.1")} == {"idle/0", "idle/1"}
    assert "did you mean" in verb(session, "top", "idel", code=125).stderr


@pytest.mark.slow
def test_an_interval_that_is_none_is_refused(session: dict[str, str]) -> None:
    assert "--interval" in verb(session, "top", "--interval", "0", code=125).stderr


@needs_tmux
def test_it_is_kept_up_to_date_and_q_restores_the_screen(terminal: Terminal) -> None:
    terminal.keys(shlex.join([*TOP, "-S", "watched"]) + "; echo code=$?", "Enter")
    terminal.shows("3 procs, every 0.5 s; q quits", "busy", "RUNNING")

    def busy() -> float:
        [row] = [line.split() for line in terminal.lines() if line.startswith("busy")]
        return 0.0 if row[-4].count(".") > 1 else float(row[-4])  # at first there is none, and the address is there

    until(lambda: busy() > 20, "its CPU", DEADLINE)
    terminal.keys("q")
    terminal.shows("code=0")
    assert terminal.lines() == ["shell", "code=0"]
    terminal.keys("stty -a | grep -q ' icanon' && echo line by line", "Enter")
    terminal.shows("line by line")


@pytest.mark.slow
@needs_tmux
def test_control_c_quits_and_restores_the_screen(terminal: Terminal) -> None:
    terminal.keys(shlex.join([*TOP, "busy"]) + "; echo code=$?", "Enter")
    terminal.shows("1 proc, every 0.5 s; q quits", "busy")
    terminal.keys("C-c")
    terminal.shows("code=0")
    assert terminal.lines() == ["shell", "code=0"]


@pytest.mark.slow
@needs_tmux
def test_what_there_is_no_room_for_is_counted(session: dict[str, str], short_dir: Path) -> None:
    low = Terminal(short_dir, session, rows=6)
    try:
        low.keys(shlex.join(TOP), "Enter")
        low.shows("busy", "and 2 more")
        low.keys("q")
        low.shows("shell")
    finally:
        low.close()


@needs_tmux
@pytest.mark.slow
def test_two_hundred_procs_are_watched_for_a_minute_and_their_number_goes_down_as_they_end(
    own_ray: OwnRay, short_dir: Path
) -> None:
    env = own_ray.environ()
    with held(env, "crowd", {f"n/{rank}": IDLE for rank in range(200)}):
        terminal = Terminal(short_dir, env, rows=40)
        try:
            terminal.keys(shlex.join([*TOP, "-S", "crowd"]) + "; echo code=$?", "Enter")
            terminal.shows("200 procs, every 0.5 s; q quits", "and 165 more")
            terminal.shows(" 1m ")  # the age of some proc
            verb(env, "kill", "-S", "crowd", "n/0-149")
            terminal.shows("50 procs, every 0.5 s; q quits")
            terminal.keys("q")
            terminal.shows("code=0")
        finally:
            terminal.close()
