"""What becomes of bytes on their way to our stdout and stderr."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import select
from collections.abc import Callable, Iterator

import pytest
from paper import Paper

from ray_launcher.cli import output
from ray_launcher.cli.output import STDERR, STDOUT, OutputAbandonedError, Plain, Prefixed, Screen


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


Written = Callable[[], bytes]
Terminal = Callable[[], contextlib.AbstractContextManager[Written]]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Makes a terminal our stdout and stderr; gives what has been written to it since it was asked last."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "21")
    return _terminal


@contextlib.contextmanager
def _terminal() -> Iterator[Written]:
    ours, theirs = pty.openpty()

    def written() -> bytes:
        """All there has been until now: what is written to a terminal comes out a moment later."""
        os.write(theirs, b"\0")
        seen = b""
        while not seen.endswith(b"\0"):
            assert select.select([ours], [], [], 10)[0]
            seen += os.read(ours, 1 << 16)
        return seen[:-1].replace(b"\r\n", b"\n")

    saved = {fd: os.dup(fd) for fd in (STDOUT, STDERR)}
    for fd in saved:
        os.dup2(theirs, fd)
    try:
        yield written
    finally:
        for fd, copy in saved.items():
            os.dup2(copy, fd)
            os.close(copy)
        os.close(theirs)
        os.close(ours)


CLEAR = b"\r\x1b[K"


def test_output_and_messages_are_written_where_the_live_line_was_and_that_comes_back(terminal: Terminal) -> None:
    with terminal() as written:
        screen = Screen(on_closed=unexpected)
        screen.live("2 run")
        screen.write(STDOUT, b"out\n")
        screen.write(STDERR, b"err\n")
        screen.say("said")
        screen.live("1 runs")
        screen.live("")
        pieces = [b"2 run", b"out\n2 run", b"err\n2 run", b"ray-launcher: said\n2 run", b"1 runs", b""]
        assert written() == CLEAR.join(pieces)


def test_a_live_line_does_not_touch_a_line_that_the_program_has_begun(terminal: Terminal) -> None:
    with terminal() as written:
        screen = Screen(on_closed=unexpected)
        screen.write(STDOUT, b"begun")
        screen.live("waiting")
        screen.write(STDOUT, b" and ended\n")
        assert written() == b"begun and ended\nwaiting"


def test_a_live_line_is_one_line_without_control_characters(terminal: Terminal) -> None:
    with terminal() as written:
        Screen(on_closed=unexpected).live("a\nb\x1b[31m" + "c" * 100)
        assert written() == b"a?b?[31m" + b"c" * 12


def test_control_c_on_a_live_line_goes_with_it(terminal: Terminal) -> None:
    with terminal() as written:
        screen = Screen(on_closed=unexpected)
        screen.say("first", after_control_c=True)
        screen.live("live")
        screen.say("second", after_control_c=True)
        assert written() == b"\nray-launcher: first\nlive" + CLEAR + b"ray-launcher: second\nlive"


def test_without_a_terminal_there_is_no_live_line(redirect: Redirect) -> None:
    screen = Screen(on_closed=unexpected)
    assert not screen.live_lines
    screen.live("2 run")
    assert screen._live == ""
