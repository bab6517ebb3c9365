"""Completion in a shell: the script is click's, and bash really completes a verb."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from held_session import verb
from terminal_rig import Terminal

import ray_launcher


@pytest.mark.parametrize(
    "shell, words", [("bash", "complete -o"), ("zsh", "#compdef ray-launcher"), ("fish", "complete")]
)
def test_a_script_is_printed_for_each_shell(shell: str, words: str) -> None:
    assert words in verb(os.environ, "completion", shell).stdout


def test_another_shell_is_refused() -> None:
    assert "'tcsh' is not one of" in verb(os.environ, "completion", "tcsh", code=125).stderr


@pytest.mark.skipif(shutil.which("tmux") is None or shutil.which("bash") is None, reason="no tmux or bash")
def test_bash_completes_a_verb(short_dir: Path) -> None:
    command = short_dir / "ray-launcher"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m ray_launcher "$@"\n')
    command.chmod(0o755)
    (short_dir / "script").write_text(verb(os.environ, "completion", "bash").stdout)
    path = f"{short_dir}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(ray_launcher.__file__).parent.parent)}
    terminal = Terminal(short_dir, env)
    try:
        terminal.keys("stty echo; exec bash --norc --noprofile -i", "Enter")
        terminal.keys("PS1='> '; . ./script; echo rea''dy", "Enter")
        terminal.shows("ready")
        terminal.keys("ray-launcher ins", "Tab")
        terminal.shows("ray-launcher inspect")
    finally:
        terminal.close()
