"""What `run -i`, `run --stdin` and `exec -i` give a program to read."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from cli_rig import DEADLINE, LAUNCHER, Run, running

DATA = b"".join(b"%d\n" % n for n in range(400_000))
DIGEST = f"{hashlib.sha256(DATA).hexdigest()}  -\n".encode()


def done(*args: str, env: dict[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
    found = subprocess.run([*LAUNCHER, *args], env=env, input=stdin, capture_output=True, timeout=DEADLINE, check=False)
    return found.returncode, found.stdout, found.stderr


def test_a_pipe_is_passed_on_with_its_end(env: dict[str, str]) -> None:
    assert done("run", "-i", "--", "sha256sum", env=env, stdin=DATA) == (0, DIGEST, b"")


@pytest.mark.slow
def test_a_file_is_passed_on(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    command = ("run", "--stdin", str(tmp_path / "data"), "--", "sha256sum")
    assert done(*command, env=env, stdin=b"") == (0, DIGEST, b"")


@pytest.mark.slow
def test_a_program_that_does_not_read_all_of_it_decides_when_it_ends(env: dict[str, str]) -> None:
    reader, writer = os.pipe()  # which stays open
    try:
        with running("-i", "--", "sh", "-c", "read -r line; echo $line; exit 3", env=env, stdin=reader) as run:
            os.write(writer, b"a line\n")
            assert run.ended() == 3
            assert (bytes(run.out), bytes(run.err)) == (b"a line\n", b"")
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.slow
def test_without_being_asked_our_stdin_is_not_touched(env: dict[str, str]) -> None:
    assert done("run", "--", "cat", env=env, stdin=b"data") == (0, b"", b"")


@pytest.mark.slow
def test_an_exec_reads_our_stdin(env: dict[str, str]) -> None:
    with running("--name", "reads", "--", "sh", "-c", "echo READY; exec sleep 9999", env=env) as target:
        target.sees("READY")
        assert done("exec", "-i", "reads/0", "--", "sha256sum", env=env, stdin=DATA) == (0, DIGEST, b"")
        assert done("exec", "reads/0", "cat", env=env, stdin=DATA) == (0, b"", b"")
        _end(target)


def _end(run: Run) -> None:
    run.interrupt()
    run.ended()
