"""The last lines of a file, whatever is in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_launcher.node.tail import MAX_LINE, TRUNCATED, read_tail


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "stderr"


def _tail(file: Path, content: bytes, lines: int = 100, begin: int = 0) -> list[str]:
    file.write_bytes(content)
    return read_tail(os.fsencode(file), lines, begin)


@pytest.mark.parametrize(
    "content, lines",
    [
        (b"", []),
        (b"\n", [""]),
        (b"\n\n", ["", ""]),
        (b"one", ["one"]),
        (b"one\n", ["one"]),
        (b"one\n\n", ["one", ""]),
        (b"\none", ["", "one"]),
        (b"one\ntwo", ["one", "two"]),
        (b"a\r\nb\rc\r\n", ["a\r", "b\rc\r"]),
        (b"a\x0bb\x0cc\x1cd\xc2\x85e\xe2\x80\xa8f", ["a\x0bb\x0cc\x1cd\x85e\u2028f"]),
        (b"\xff\xfe ok \xc3\n\xf0\x9f\x98\x80", ["\ufffd\ufffd ok \ufffd", "\U0001f600"]),
        (b"nul\0byte", ["nul\0byte"]),
    ],
)
def test_a_line_ends_at_a_newline_and_nowhere_else(file: Path, content: bytes, lines: list[str]) -> None:
    assert _tail(file, content) == lines


def test_only_the_last_lines_come_oldest_first(file: Path) -> None:
    assert _tail(file, b"".join(b"%d\n" % n for n in range(100_000)), 3) == ["99997", "99998", "99999"]


@pytest.mark.parametrize("lines", [0, -1])
def test_none_are_read_when_none_are_wanted(file: Path, lines: int) -> None:
    assert _tail(file, b"one\n", lines) == []


def test_a_missing_file_has_no_lines(file: Path) -> None:
    assert read_tail(file, 10) == []


def test_what_lies_before_the_beginning_is_anothers(file: Path) -> None:
    assert _tail(file, b"theirs\nalso\nours", begin=12) == ["ours"]
    assert _tail(file, b"theirs\n", begin=7) == []
    assert _tail(file, b"truncated by the program itself", begin=1000) == ["truncated by the program itself"]


@pytest.mark.parametrize("extra, mark", [(0, ""), (1, TRUNCATED), (MAX_LINE, TRUNCATED), (10 * MAX_LINE, TRUNCATED)])
@pytest.mark.parametrize("end", [b"", b"\n", b"\nlast\n"])
def test_a_long_line_keeps_its_end_behind_a_mark(file: Path, extra: int, mark: str, end: bytes) -> None:
    content = b"first\n" + b"x" * extra + b"y" * MAX_LINE + end
    rest = ["last"] if b"last" in end else []
    assert _tail(file, content) == ["first", mark + "y" * MAX_LINE, *rest]


def test_the_mark_goes_before_a_whole_character(file: Path) -> None:
    (line,) = _tail(file, "ä€😀".encode() * 20_000)
    assert line.startswith(TRUNCATED)
    assert "\ufffd" not in line


def test_many_long_lines_are_bounded_together(file: Path) -> None:
    lines = _tail(file, (b"\xff" * MAX_LINE + b"\n") * 300, 300)
    assert 100 <= len(lines) < 300
    assert sum(len(line.encode()) for line in lines) < 26 << 20
    assert set(lines) == {"\ufffd" * MAX_LINE}


def test_very_many_lines_are_bounded(file: Path) -> None:
    assert len(_tail(file, b"\n" * 1_000_000, 1_000_000)) == 100_000


def test_a_gigabyte_without_a_newline_costs_no_more_than_its_end(file: Path) -> None:
    with open(file, "wb") as sparse:
        sparse.truncate(1 << 30)
        sparse.seek(0, os.SEEK_END)
        sparse.write(b"the end")
    (line,) = read_tail(file, 100)
    assert line.startswith(TRUNCATED + "\0")
    assert line.endswith("\0the end")
    assert len(line) == len(TRUNCATED) + MAX_LINE


def test_old_lines_behind_much_text_are_found_within_the_search(file: Path) -> None:
    assert _tail(file, b"old\n" + b"x" * (20 << 20) + b"\nnew\n") == ["old", TRUNCATED + "x" * MAX_LINE, "new"]
    lines = _tail(file, b"older\n" + b"x" * (40 << 20) + b"\nnew\n")
    assert lines == [TRUNCATED + "x" * MAX_LINE, "new"]


def test_a_pipe_or_a_directory_has_no_lines(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_tail(tmp_path / "pipe", 10) == []
    assert read_tail(tmp_path, 10) == []


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(st.binary(max_size=20), st.integers(1, 200_000).map(lambda size: b"\n" * (size % 7) + b"z" * size)),
        max_size=12,
    ).map(b"\n".join),
    st.integers(1, 20),
)
def test_the_tail_equals_what_splitting_the_whole_file_gives(file: Path, content: bytes, lines: int) -> None:
    whole = content.removesuffix(b"\n").split(b"\n") if content else []
    expected = [
        line.decode("utf-8", "replace")
        if len(line) <= MAX_LINE
        else TRUNCATED + line[-MAX_LINE:].decode("utf-8", "replace")
        for line in whole[-lines:]
    ]
    assert _tail(file, content, lines) == expected
