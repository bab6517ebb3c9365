"""Reports are kept until they are acknowledged, and bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ray_launcher.node import reports
from ray_launcher.node.protocol import unpack
from ray_launcher.node.reports import Reports, ended, failed


@given(st.lists(st.one_of(st.none(), st.integers(-2, 30)), max_size=40))
def test_what_is_kept_is_what_is_above_every_acknowledgement(steps: list[int | None]) -> None:
    kept, added, highest = Reports(), 0, 0
    for step in steps:
        if step is None:
            added += 1
            kept.add(b"token %d" % added, b"", ended(0), ["line"])
        else:
            kept.acknowledge(range(step + 1))
            highest = max(highest, min(step, added))
        assert [int(unpack(frame[4:])[1]) for frame in kept.frames()] == list(range(highest + 1, added + 1))
        assert [n for n in range(1, added + 1) if b"token %d" % n in kept] == list(range(highest + 1, added + 1))
    assert kept._bytes == sum(map(len, kept.frames()))


def test_beyond_a_bound_reports_go_without_their_tail_and_are_never_dropped() -> None:
    kept = Reports()
    size = 1 << 20
    frames = [kept.add(b"%d" % n, b"", ended(0), ["x" * size]) for n in range(100)]
    with_tail = [frame for frame in frames if len(frame) > size]
    assert len(with_tail) == reports.REPORT_BYTES // size
    assert len(list(kept.frames())) == 100
    kept.acknowledge(range(101))
    assert len(kept.add(b"after", b"", ended(0), ["x" * size])) > size


def test_a_reason_is_bounded() -> None:
    assert len(failed("x" * 10_000_000)[1]) < 1 << 16
