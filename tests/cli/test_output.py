"""What becomes of bytes on their way to our stdout and stderr."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from ray_launcher.cli import output
from ray_launcher.cli.output import STDERR, STDOUT, OutputAbandonedError, Plain, Prefixed, Screen


class Paper(Screen):
    """A screen that notes each write."""

    def __init__(self) -> None:
        super().__init__(on_closed=lambda _: None)
        self.writes: list[tuple[int, bytes]] = []

    def write(self, fd: int, data: bytes) -> None:
        self.writes.append((fd, data))


@pytest.fixture
def paper() -> Paper:
    return Paper()


def test_one_procs_bytes_are_passed_on_as_they_come(paper: Paper) -> None:
    view = Plain(paper)
    for data in (b"\x00\xff half", b" a line\n\n", b"no end"):
        view.show(0, STDOUT, data)
    view.finish()
    assert paper.writes == [(1, b"\x00\xff half"), (1, b" a line\n\n"), (1, b"no end")]


def test_several_procs_lines_are_whole_and_bear_their_rank(paper: Paper) -> None:
    view = Prefixed(paper)
    view.show(0, STDOUT, b"be")
    view.show(1, STDOUT, b"one\n\ntwo\nth")
    view.show(0, STDERR, b"oops\n")
    view.show(0, STDOUT, b"gun\r\n")
    view.show(1, STDOUT, b"ree\n")
    assert paper.writes == [
        (1, b"[1] one\n[1] \n[1] two\n"),
        (2, b"[0] oops\n"),
        (1, b"[0] begun\r\n"),
        (1, b"[1] three\n"),
    ]


def test_last_lines_without_an_end_are_shown_at_the_end(paper: Paper) -> None:
    view = Prefixed(paper)
    view.show(10, STDERR, b"bye")
    view.show(2, STDOUT, b"so long")
    assert paper.writes == []
    view.finish()
    assert paper.writes == [(1, b"[2] so long\n"), (2, b"[10] bye\n")]


def test_a_line_that_does_not_end_is_broken(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LONGEST_LINE", 8)
    view = Prefixed(paper)
    view.show(0, STDOUT, b"12345678")
    assert paper.writes == []
    view.show(0, STDOUT, b"9")
    assert paper.writes == [(1, b"[0] 123456789\n")]


Redirect = Callable[[int], None]


@pytest.fixture
def redirect() -> Iterator[Redirect]:
    """Makes a file descriptor our stdout."""
    saved = os.dup(STDOUT)
    yield lambda fd: void(os.dup2(fd, STDOUT))
    os.dup2(saved, STDOUT)
    os.close(saved)


def void(_: object) -> None:
    pass


def unexpected(error: OSError) -> None:
    raise AssertionError(error)


def test_all_is_written_to_a_pipe_that_takes_it_in_pieces_and_does_not_block(redirect: Redirect) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    child = os.fork()
    if child == 0:  # reads, since this process is to wait
        os.close(writing)
        total = 0
        while data := os.read(reading, 1 << 16):
            total += len(data)
        os._exit(0 if total == 1 << 20 else 1)
    redirect(writing)
    Screen(on_closed=unexpected).write(STDOUT, bytes(1 << 20))
    os.close(writing)
    redirect(reading)  # closes the last way in
    os.close(reading)
    assert os.waitpid(child, 0)[1] == 0


def test_a_reader_that_has_gone_is_reported_once_and_the_rest_is_dropped(redirect: Redirect) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    errors: list[OSError] = []
    screen = Screen(on_closed=errors.append)
    redirect(writing)
    os.close(writing)
    screen.write(STDOUT, b"a")
    screen.write(STDOUT, b"b")
    assert [error.errno for error in errors] == [errno.EPIPE]


def test_nothing_is_written_once_nobody_wants_it(redirect: Redirect) -> None:
    screen = Screen(on_closed=unexpected)
    screen.abandoned.set()
    with pytest.raises(OutputAbandonedError):
        screen.write(STDOUT, b"a")
