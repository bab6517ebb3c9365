"""`ray-launcher run --spawner`: procs that a plug-in starts, with the same exit codes, words and Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import OwnRay, running
from held_session import verb
from plugin_rig import offer

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
RUN = ("--spawner", "local")

PICKY = """
from custom_spawner import LocalSpawner

class Picky(LocalSpawner):
    def __init__(self, size):
        super().__init__()
        self.size = int(size)
"""


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of commands that find the spawner "local", in a Ray whose workers do so, too."""
    site = tmp_path_factory.mktemp("site")
    offer(site, local="custom_spawner:LocalSpawner", picky="picky:Picky")
    (site / "picky.py").write_text(PICKY)
    ray = OwnRay(PYTHONPATH=os.pathsep.join([str(site), str(EXAMPLES), *sys.path]))
    yield ray.environ()
    ray.stop()


def test_the_last_words_and_the_first_failure_are_told(env: dict[str, str]) -> None:
    script = 'echo "words of $RAY_LAUNCHER_RANK" >&2; exit "$RAY_LAUNCHER_RANK"'
    done = verb(env, "run", *RUN, "-n", "2", "--", "sh", "-c", script, code=1)
    assert done.stdout == ""
    assert {"[0] words of 0", "[1] words of 1"} <= set(done.stderr.splitlines())
    assert "rank 1 of 2" in done.stderr


def test_an_interrupt_ends_its_procs(env: dict[str, str], tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    with running(*RUN, "--", "sh", "-c", f"echo > {ready}; exec sleep 9999", env=env) as run:
        ready.read_text()
        run.process.send_signal(signal.SIGINT)
        assert run.ended() == 128 + signal.SIGTERM


def test_what_a_spawner_makes_of_its_options_is_told_in_a_line(env: dict[str, str]) -> None:
    words = ("--spawner", "picky", "--spawner-option", "size=big")
    done = verb(env, "run", *words, "--", "true", code=125)
    said = "ValueError: invalid literal for int() with base 10: 'big'"
    assert done.stderr == f"ray-launcher: cannot start Picky: {said}\n"


@pytest.mark.parametrize(
    "words, error",
    [
        (["--spawner", "lokal"], "no spawner 'lokal'; those that are installed: "),
        (["--spawner", "local", "-j", "1x2"], "-j is not for plug-ins: leave it out, or --spawner"),
        (["--spawner", "local", "-d"], "-d is not for plug-ins"),
        (["--spawner", "local", "--spawner-option", "size=1"], "--spawner-option: LocalSpawner: got an unexpected"),
        (["--spawner", "local", "--spawner-option", "size"], "write NAME=VALUE, not 'size'"),
        (["--spawner-option", "size=1"], "--spawner-option is for --spawner: say which"),
    ],
)
def test_what_makes_no_sense_is_refused(env: dict[str, str], words: list[str], error: str) -> None:
    assert error in verb(env, "run", *words, "--", "true", code=125).stderr
