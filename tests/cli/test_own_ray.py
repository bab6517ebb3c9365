"""Where there is no cluster the command starts Ray itself, and takes it away again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import DEADLINE, Run, running
from node_rig import until


@pytest.fixture
def env(short_dir: Path) -> dict[str, str]:
    return environ(short_dir)


def environ(directory: Path) -> dict[str, str]:
    """No cluster is named or recorded."""
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE")
    return {**{name: value for name, value in os.environ.items() if name not in unset}, "RAY_TMPDIR": str(directory)}


def processes(directory: Path) -> list[str]:
    """Command lines, of Ray's processes above all, that name the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            if os.fsencode(directory) in words:
                found.append(words.decode(errors="replace"))
    return found


def test_it_shows_nothing_of_ray_and_leaves_nothing_of_it(env: dict[str, str], short_dir: Path) -> None:
    with running("-n", "2", "--", "sh", "-c", "echo hello; echo oops >&2", env=env) as run:
        assert run.ended() == 0
    assert sorted(run.out.splitlines()) == [b"[0] hello", b"[1] hello"]
    assert sorted(run.err.splitlines()) == [b"[0] oops", b"[1] oops"]
    assert list((short_dir / "ray").glob("session_*")), "it has not started Ray"
    until(lambda: not processes(short_dir), "Ray is gone", DEADLINE)


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(scope="module")
def signalled() -> Iterator[dict[signal.Signals, tuple[Run, Path]]]:
    """Commands that get a signal while Ray starts, and the directories of their Rays; all at once."""
    with contextlib.ExitStack() as stack:
        runs = {}
        for number in SIGNALS:
            path = Path(tempfile.mkdtemp(prefix="c"))
            stack.callback(shutil.rmtree, path, ignore_errors=True)
            words = ("--", "sh", "-c", "echo started; exec sleep 9999")
            runs[number] = stack.enter_context(running(*words, env=environ(path))), path
        waiting = set(SIGNALS)

        def interrupt_those_that_start_ray() -> bool:
            """At once, each: it must not have gone on to start a program."""
            for number in [*waiting]:
                run, path = runs[number]
                if any("gcs_server" in words for words in processes(path)):
                    run.interrupt(number)
                    waiting.remove(number)
            return not waiting

        until(interrupt_those_that_start_ray, "each has been starting Ray", DEADLINE)
        yield runs


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_ray_starts_ends_it_at_once(
    signalled: dict[signal.Signals, tuple[Run, Path]], number: signal.Signals
) -> None:
    run, directory = signalled[number]
    assert run.ended() == 128 + number
    assert run.out == b""
    assert run.err == b""
    until(lambda: not processes(directory), "Ray is gone", DEADLINE)
