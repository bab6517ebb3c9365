"""Logs of running procs: when they were written, and that they keep within their bounds without the proc's noticing."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from node_rig import Gate, Rig, until

from ray_launcher.node import holes, marks
from ray_launcher.node.growth import Growth
from ray_launcher.node.marks import Marks
from ray_launcher.node.tail import TRUNCATED, read_tail
from ray_launcher.node.timers import Timers

LIMIT = 64 << 10
#: Writes numbered lines, a hundred bytes each, as fast as it can, and says on stderr how many; then waits.
WRITER = """
import os, sys
count = int(sys.argv[1])
for start in range(0, count, 1000):
    text = "".join("%099d\\n" % n for n in range(start, start + 1000)).encode()
    assert os.write(1, text) == len(text)
print("wrote", count, file=sys.stderr, flush=True)
open(sys.argv[2]).read()
"""


def kept(path: Path) -> int:
    """Bytes that it has on disk."""
    return path.stat().st_blocks * 512 if path.exists() else 0


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


# -- the bound --------------------------------------------------------------------------------------------------------


def test_a_proc_that_writes_fast_keeps_the_newest_part_on_disk_and_all_its_writes_succeed(rig: Rig, gate: Gate) -> None:
    token = rig.python(WRITER, "1000000", str(gate.path), log_limit=LIMIT)
    log, errors = rig.log(token, "out"), rig.log(token, "err")
    until(lambda: errors.exists() and errors.read_bytes() == b"wrote 1000000\n", "it has written all")
    until(lambda: kept(log) <= LIMIT + (8 << 10), "no more is kept than the bound")
    with log.open("rb") as file:
        assert holes.first_data(file.fileno()) > 0
        file.seek(-LIMIT, os.SEEK_END)
        assert file.read().splitlines()[1:] == [b"%099d" % n for n in range(1_000_000 - 655, 1_000_000)]
    assert log.stat().st_size == 100_000_000
    gate.open()
    assert rig.exit(token).value == 0


def test_what_a_short_proc_wrote_is_cut_at_its_end(rig: Rig) -> None:
    token = rig.python(WRITER, "20000", os.devnull, log_limit=LIMIT)
    assert rig.exit(token).value == 0
    log = rig.log(token, "out")
    until(lambda: kept(log) <= LIMIT + (8 << 10), "no more is kept than the bound")
    assert log.read_bytes().endswith(b"%099d\n" % 19_999)


def test_without_a_bound_all_is_kept(rig: Rig) -> None:
    token = rig.python(WRITER, "20000", os.devnull)
    assert rig.exit(token).value == 0
    rig.none_left()
    assert len(rig.output(token).split(b"\n")) == 20_001


def test_the_stderr_tail_of_a_bounded_proc_is_what_is_kept_of_it(rig: Rig, gate: Gate) -> None:
    script = (
        "import sys; sys.stderr.write(''.join('%099d\\n' % n for n in range(20000)));"
        "sys.stderr.flush(); open(sys.argv[1]).read()"
    )
    token = rig.python(script, str(gate.path), tail_lines=10_000, log_limit=LIMIT)
    until(lambda: 0 < kept(rig.log(token, "err")) <= LIMIT + (8 << 10), "no more is kept than the bound")
    gate.open()
    first, *tail = rig.exit(token).tail
    assert first.startswith(TRUNCATED)
    assert [int(line) for line in tail] == list(range(20_000 - len(tail), 20_000))
    assert len(tail) >= LIMIT // 100 - 1


def test_a_tail_ends_at_what_was_freed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 4094 + b"\ny" + b"z\n" + b"last\n")
    with path.open("rb+") as file:
        holes.free(file.fileno(), 0, 4096)
    assert read_tail(path, 10, 0, 4096) == [TRUNCATED + "z", "last"]
    assert read_tail(path, 1, 0, 4096) == ["last"]


# -- the parts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def looked() -> Callable[[Growth, Path, int], None]:
    """Writes so many bytes more, and has them looked at."""

    def write_and_look(seen: Growth, path: Path, count: int) -> None:
        with path.open("ab") as file:
            file.write(b"x" * count)
        seen._look_at_all()

    return write_and_look


def growth_of(path: Path, limit: int = 0) -> tuple[Growth, list[str]]:
    told: list[str] = []
    seen = Growth(Timers(), told.append)
    seen.add(os.fsencode(path), limit)
    return seen, told


def marks_of(path: Path) -> list[tuple[float, int]]:
    with open(marks.path_of(os.fsencode(path)), "rb") as file:
        return list(Marks(file.fileno()).behind(0))


def test_each_look_that_finds_more_marks_when_that_was_written(
    log: Path, looked: Callable[[Growth, Path, int], None]
) -> None:
    seen, _ = growth_of(log)
    before = time.time() - 0.1  # the kernel's clock for files is a little behind
    looked(seen, log, 10)
    looked(seen, log, 0)
    looked(seen, log, 5)
    (first, ten), (second, fifteen) = marks_of(log)
    assert (ten, fifteen) == (10, 15)
    assert before <= first <= second <= time.time()


def test_a_file_that_was_quiet_is_looked_at_every_fifth_time_until_it_grows(
    log: Path, looked: Callable[[Growth, Path, int], None]
) -> None:
    seen, _ = growth_of(log)
    for _ in range(10):
        looked(seen, log, 0)
    for _ in range(5):
        looked(seen, log, 1)
    assert [size for _, size in marks_of(log)] == [5]
    looked(seen, log, 1)
    assert [size for _, size in marks_of(log)] == [5, 6]


def test_marks_are_found_by_what_they_are_about_and_by_time(log: Path) -> None:
    with open(log, "wb+") as file:
        for number in range(1000):
            marks.write(file.fileno(), number, 100.0 + number, 10 * number)
        os.pwrite(file.fileno(), b"half a mark", 1000 * marks.SIZE)
        found = Marks(file.fileno())
        assert next(found.behind(0)) == (101.0, 10)
        assert next(found.behind(10)) == (102.0, 20)
        assert next(found.behind(4999)) == (600.0, 5000)
        assert len(list(found.behind(0))) == 999
        assert list(found.behind(9990)) == []
        assert found.size_before(0) == (0, True)
        assert found.size_before(100.5) == (0, True)
        assert found.size_before(101.0) == (0, True)
        assert found.size_before(101.5) == (10, True)
        assert found.size_before(5000.0) == (9990, False)


def test_marks_of_what_was_freed_are_freed_too(log: Path, looked: Callable[[Growth, Path, int], None]) -> None:
    seen, _ = growth_of(log, LIMIT)
    for _ in range(600):
        looked(seen, log, 1000)
    path = Path(os.fsdecode(marks.path_of(os.fsencode(log))))
    assert path.stat().st_size == 600 * marks.SIZE
    assert kept(path) <= 8 << 10
    with path.open("rb") as file:
        assert next(Marks(file.fileno()).behind(599_000))[1] == 600_000


def test_a_proc_that_lives_for_less_than_a_look_has_no_marks(rig: Rig) -> None:
    assert rig.exit(rig.sh("echo words")).value == 0
    rig.none_left()
    assert not list(rig.logs.glob("*.times"))


def test_a_file_that_its_program_has_emptied_is_not_kept_nor_are_its_marks(rig: Rig, gate: Gate) -> None:
    token = rig.sh(f"echo words; read -r _ <'{gate.path}'; : >/dev/stdout; exec sleep 0.01")
    times = rig.logs / f"{token.decode()}.out.times"
    until(times.exists, "it has been looked at")
    gate.open()
    assert rig.exit(token).value == 0
    until(lambda: not times.exists(), "its marks are gone")


def test_where_holes_cannot_be_punched_nothing_is_freed_and_it_is_told_once(
    log: Path, looked: Callable[[Growth, Path, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(holes, "free", refuse)
    seen, told = growth_of(log, LIMIT)
    looked(seen, log, 3 * LIMIT)
    looked(seen, log, LIMIT)
    assert len(told) == 1
    assert "cannot free parts of files" in told[0]
    assert kept(log) >= 4 * LIMIT
    assert len(marks_of(log)) == 2


def test_a_file_that_has_been_removed_is_let_be(log: Path, looked: Callable[[Growth, Path, int], None]) -> None:
    seen, told = growth_of(log, LIMIT)
    looked(seen, log, 10)
    log.unlink()
    seen._look_at_all()
    seen.done(os.fsencode(log))
    assert told == []
