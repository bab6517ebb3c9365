"""Run a piece of a test as another user: in a forked child, because the interpreter's files may be root's alone."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

#: A user id that nobody has.
NOBODY = 61_234


def needs_root() -> None:
    """Skip the test where this process cannot become another user."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")


@contextmanager
def process_of(uid: int, run: Callable[[], object]) -> Iterator[int]:
    """A process of that user, which runs `run` and is killed at the end; yields its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            run()
            code = 0
        except BaseException:  # noqa: BLE001  # nothing may get into the test run that this is a copy of
            traceback.print_exc()
        finally:
            os._exit(code)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def answer_of(uid: int, ask: Callable[[], str]) -> str:
    """What `ask` returns when that user calls it."""
    out, into = os.pipe()
    with process_of(uid, lambda: os.write(into, ask().encode())) as pid:
        os.close(into)
        with open(out, encoding="utf-8") as answer:
            text = answer.read()
    assert text, f"process {pid} has not answered; its traceback is on stderr"
    return text
