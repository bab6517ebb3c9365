"""`ray-launcher logs`: what procs have written, on our own streams, as somebody at a shell sees it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import click
import pytest
from cli_rig import DEADLINE, running
from paper import Paper
from terminal_rig import Terminal

from ray_launcher.cli.logs import _since, _template
from ray_launcher.cli.output import STDERR, STDOUT, Lines, Plain, behind

LOGS = [sys.executable, "-m", "ray_launcher", "logs"]
#: Says something, waits until a line is written into the pipe that is its first argument, and says more.
PROGRAM = """
echo "out $RAY_LAUNCHER_RANK"; echo "err $RAY_LAUNCHER_RANK" >&2
read -r _ <"$0"; printf 'more\\nlast'; read -r _ <"$0"
"""

Env = dict[str, str]


@contextmanager
def run(env: Env, gate: Path, *options: str) -> Iterator[Callable[[], None]]:
    """Procs `train/0` and so on that have said something; call what is given to have each go on, and again to end."""
    if not gate.exists():
        os.mkfifo(gate)
    count = int(options[options.index("-n") + 1]) if "-n" in options else 1

    def go_on() -> None:
        for _ in range(count):
            with open(gate, "w", encoding="ascii") as pipe:
                pipe.write("go\n")

    with running("--name", "train", *options, "--", "sh", "-c", PROGRAM, str(gate), env=env) as command:
        prefix = "" if count == 1 else f"[{count - 1}] "
        command.sees(*(f"out {rank}" for rank in range(count)), f"{prefix}err {count - 1}")
        yield go_on
        command.interrupt()
        command.ended()


@pytest.fixture
def gate(short_dir: Path) -> Path:
    return short_dir / "gate"


def logs(env: Mapping[str, str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    done = subprocess.run([*LOGS, *args], env=env, capture_output=True, text=True, timeout=DEADLINE, check=False)
    return done.returncode, done.stdout, done.stderr


class Following:
    """`logs -f` under way."""

    def __init__(self, env: Env, *args: str) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([*LOGS, "-f", *args], env=env, stdout=pipe, stderr=pipe, bufsize=0)
        assert self.process.stdout is not None
        self.out = self.process.stdout

    def line(self) -> str:
        line = self.out.readline().decode()
        assert line, f"it has ended: {self.ended()}"
        return line

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, out.decode(), err.decode()


@contextmanager
def following(env: Env, *args: str) -> Iterator[Following]:
    found = Following(env, *args)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.communicate()


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_one_proc_is_shown_as_it_is_and_several_behind_their_ranks(env: Env, gate: Path) -> None:
    with run(env, gate, "-n", "2"):
        assert logs(env, "train/1") == (0, "out 1\n", "err 1\n")
        code, out, err = logs(env, "train")
        assert (code, sorted(out.splitlines()), sorted(err.splitlines())) == (
            0,
            ["[0] out 0", "[1] out 1"],
            ["[0] err 0", "[1] err 1"],
        )
        assert logs(env, "train/0-0", "--prefix", "{name}@{node} {rank}: ", "--stdout")[1:] == (
            f"train/0@{env['RAY_ADDRESS'].rpartition(':')[0]} 0: out 0\n",
            "",
        )
        assert logs(env, "train/0", "--stderr", "--tail", "0") == (0, "", "")
        code, out, err = logs(env, "--json", "-t", "train/1")
        facts = [json.loads(line) for line in out.splitlines()]
        for each in facts:
            when = datetime.fromisoformat(each.pop("time").replace("Z", "+00:00"))
            assert abs((datetime.now(timezone.utc) - when).total_seconds()) < DEADLINE
        node = env["RAY_ADDRESS"].rpartition(":")[0]
        assert sorted(facts, key=lambda each: str(each["stream"])) == [
            {"proc_id": "train/1", "stream": "stderr", "rank": 1, "node": node, "line": "err 1"},
            {"proc_id": "train/1", "stream": "stdout", "rank": 1, "node": node, "line": "out 1"},
        ]
        code, out, err = logs(env, "-t", "train/0")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z out 0\n", out)
        assert logs(env, "--since", "1h", "train/0") == (0, "out 0\n", "err 0\n")
        assert logs(env, "--since", "2999-01-01", "train/0") == (0, "", "")
        code, out, err = logs(env, "trian/0")
        assert (code, out) == (125, "")
        assert "did you mean 'train/0'" in err


@pytest.mark.slow
def test_following_ends_with_the_procs_and_shows_what_has_no_end(env: Env, gate: Path) -> None:
    with run(env, gate) as go_on, following(env, "train/0") as reader:
        assert reader.line() == "out 0\n"
        go_on()
        assert reader.line() == "more\n"
        go_on()
        assert reader.ended() == (0, "last", "err 0\n")


@pytest.mark.slow
def test_an_interrupt_ends_it_quietly(env: Env, gate: Path) -> None:
    with run(env, gate), following(env, "--stdout", "train/0") as reader:
        assert reader.line() == "out 0\n"
        reader.process.send_signal(signal.SIGINT)
        assert reader.ended() == (130, "", "")


@pytest.mark.slow
def test_an_interrupt_ends_it_quietly_while_it_connects(env: Env) -> None:
    """Where nobody answers."""
    host = env["RAY_ADDRESS"].rpartition(":")[0]
    with socket.create_server((host, 0)) as silent:
        silent.settimeout(DEADLINE)
        address = f"{host}:{silent.getsockname()[1]}"
        with following({**env, "RAY_ADDRESS": address}, "train/0") as reader, silent.accept()[0]:
            reader.process.send_signal(signal.SIGINT)
            assert reader.ended() == (130, "", "")


@pytest.mark.slow
def test_it_ends_quietly_when_its_reader_has_gone_even_where_nothing_more_comes(env: Env, gate: Path) -> None:
    with run(env, gate), following(env, "--stdout", "train/0") as reader:
        assert reader.line() == "out 0\n"
        reader.out.close()
        assert reader.process.wait(DEADLINE) == 141
        assert reader.process.stderr is not None
        assert reader.process.stderr.read() == b""


@pytest.mark.slow
def test_it_ends_quietly_when_its_reader_has_gone_before_all_is_written(env: Env) -> None:
    words = ("--name", "many", "--", "sh", "-c", "echo up >&2; seq 1 3000000; sleep 9999")
    with running(*words, env=env, stdout=subprocess.DEVNULL) as command:
        command.sees("up")
        with following(env, "--stdout", "many") as reader:
            assert reader.line() == "1\n"
            reader.out.close()
            assert reader.process.wait(DEADLINE) == 141
        command.interrupt()
        command.ended()


@pytest.mark.slow
def test_the_spawner_may_be_killed_meanwhile(env: Env, gate: Path) -> None:
    with run(env, gate) as go_on, following(env, "--stdout", "train/0") as reader:
        assert reader.line() == "out 0\n"
        code = "import ray, os, signal; ray.init(log_to_driver=False, logging_level='error')\n"
        code += "[name] = [a['name'] for a in ray.util.list_named_actors(True) if a['name'].startswith('spawner-')]\n"
        code += "facts = ray.get_actor(name, 'ray_launcher').facts\n"
        code += "os.kill(ray.get(facts.remote())['pid'], signal.SIGKILL); ray.get(facts.remote())"
        subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=DEADLINE, capture_output=True)
        go_on()
        assert reader.line() == "more\n"
        go_on()
        assert reader.ended()[:2] == (0, "last")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_control_c_in_a_terminal_ends_it_quietly(env: Env, gate: Path, short_dir: Path) -> None:
    with run(env, gate):
        terminal = Terminal(short_dir, env)
        try:
            terminal.keys(f"{' '.join(LOGS)} -f train; echo code=$?", "Enter")
            terminal.sees("out 0")
            terminal.sees("err 0")
            terminal.keys("C-c")
            terminal.sees("code=130")
            assert sorted(terminal.lines()) == ["code=130", "err 0", "out 0", "shell"]
        finally:
            terminal.close()


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, words",
    [
        ([], "Missing argument 'TARGET...'"),
        (["--tail", "-1", "a"], "--tail"),
        (["--since", "yesterday", "a"], "write how long ago, as in 90, 10m or 1.5h"),
        (["--prefix", "{host} ", "a"], "there is no {host}; write {name}, {rank}, {node}, {session}"),
        (["--prefix", "{rank:>3}", "a"], "plainly"),
        (["--prefix", "{rank", "a"], "write {{ and }} for braces"),
        (["--json", "--prefix", "x", "a"], "leave --prefix out"),
    ],
)
def test_what_makes_no_sense_is_refused_before_there_is_a_cluster(args: list[str], words: str) -> None:
    code, out, err = logs({**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}, *args)
    assert (code, out) == (125, "")
    assert words in " ".join(err.split())


@pytest.mark.slow
def test_without_a_cluster_it_says_so(env: Env) -> None:
    code, _, err = logs({**env, "RAY_ADDRESS": "127.0.0.1:1"}, "train")
    assert code == 125
    assert "the connection was refused" in err


@pytest.mark.slow
def test_times_are_local_unless_they_say_otherwise() -> None:
    assert _since("2026-01-02T03:04:05Z") == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert _since("2026-01-02T03:04:05") == datetime(2026, 1, 2, 3, 4, 5).astimezone()  # so it is


@pytest.mark.slow
def test_a_template_may_have_braces_of_its_own() -> None:
    assert _template("{{{name}}} ") == "{{{name}}} "
    with pytest.raises(click.BadParameter, match="newline"):
        _template("a\nb")


# -- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_line_has_the_prefix_of_its_beginning() -> None:
    paper = Paper()
    view = Lines(paper, behind(lambda _rank, _fd, time: b"%d " % (time.second if time else 0)))
    one, two = (datetime(2026, 1, 1, 0, 0, second, tzinfo=timezone.utc) for second in (1, 2))
    view.show(0, STDOUT, b"a\nbe", one)
    view.show(0, STDOUT, b"gun\nc\nd", two)
    view.finish()
    assert paper.writes == [(1, b"1 a\n"), (1, b"1 begun\n2 c\n"), (1, b"2 d\n")]


@pytest.mark.slow
def test_where_something_is_missing_the_line_ends() -> None:
    paper = Paper()
    for view in (Plain(paper), Lines(paper, behind(lambda *_: b"> "))):
        paper.writes.clear()
        view.show(0, STDERR, b"beg")
        view.cut(0, STDERR)
        view.cut(0, STDERR)
        view.show(0, STDERR, b"next\n")
        shown = b"".join(data for _, data in paper.writes)
        assert shown.replace(b"> ", b"") == b"beg\nnext\n"
