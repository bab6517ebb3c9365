"""Frames and launches on the wire; hostile bytes can do no more than raise ProtocolError."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_launcher.node.limits import BINDINGS, Limits
from ray_launcher.node.protocol import MAX_FRAME, FrameReader, ProtocolError, pack, unpack
from ray_launcher.node.spec import Spec

_fields = st.lists(st.binary(max_size=50), min_size=1, max_size=8)
_seconds = st.floats(0, allow_nan=False)
_whole = st.integers(-(1 << 70), 1 << 70)
_limits = st.builds(
    Limits,
    bind=st.dictionaries(st.sampled_from(BINDINGS), st.sampled_from(["0", "0-3,8"])),
    rlimits=st.dictionaries(st.sampled_from(["core", "nofile"]), st.tuples(_whole, _whole)),
    umask=st.none() | _whole,
    nice=st.none() | _whole,
    time=_seconds,
    grace=_seconds,
    signum=st.none() | st.integers(1, 64),
    lead=_seconds,
)
_specs = st.builds(
    Spec,
    token=st.binary(min_size=1, max_size=20),
    program=st.binary(max_size=20),
    argv=st.lists(st.binary(max_size=10), min_size=1, max_size=5),
    cwd=st.binary(max_size=10),
    environ=st.lists(st.tuples(st.binary(max_size=5), st.binary(max_size=5)).map(b"=".join), max_size=5),
    unset=st.lists(st.binary(max_size=5), max_size=5),
    inherit=st.booleans(),
    stdout=st.binary(max_size=10),
    stderr=st.binary(max_size=10),
    tail_lines=st.integers(0, 1 << 40),
    note=st.binary(max_size=10),
)


@given(st.lists(_fields, max_size=6), st.lists(st.integers(1, 40), min_size=1))
def test_frames_arrive_whole_however_the_stream_is_cut(frames: list[list[bytes]], cuts: list[int]) -> None:
    stream = b"".join(pack(*frame) for frame in frames)
    reader, seen = FrameReader(), []
    while stream:
        for cut in cuts:
            seen += reader.feed(stream[:cut])
            stream = stream[cut:]
    assert seen == frames


@given(_fields)
def test_fields_come_back_as_they_were(fields: list[bytes]) -> None:
    assert unpack(pack(*fields)[4:]) == fields


@given(st.binary(max_size=200))
def test_garbage_is_frames_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        for frame in FrameReader().feed(data):
            assert frame
            assert all(isinstance(field, bytes) for field in frame)


@given(st.binary(max_size=100))
def test_a_body_is_fields_or_an_error(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert pack(*unpack(body))[4:] == body


def test_a_frame_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert len(pack(b"x" * (MAX_FRAME - 4))) == MAX_FRAME + 4
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        pack(b"x" * (MAX_FRAME - 3))
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        FrameReader().feed((MAX_FRAME + 1).to_bytes(4, "big"))


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\0\0", b"\0\0\0\x02x", b"\xff\xff\xff\xff", b"\0\0\0\0\0"])
def test_a_body_that_does_not_add_up_is_an_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(body)


@given(_specs)
def test_a_launch_comes_back_as_it_was(spec: Spec) -> None:
    again = Spec.from_fields(spec.fields())
    assert {name: getattr(again, name) for name in Spec.__slots__} == {
        name: getattr(spec, name) for name in Spec.__slots__
    }


def _item(name: str) -> st.SearchStrategy[str]:
    return st.text("0123456789:.-=ein ", max_size=8).map(lambda value: f"{name}={value}")


@given(_limits)
def test_limits_come_back_as_they_were(limits: Limits) -> None:
    again = Spec.from_fields(Spec(token=b"t", program=b"p", argv=[b"p"], limits=limits).fields()).limits
    if limits.signum is None:
        limits.lead = 0.0
    assert {name: getattr(again, name) for name in Limits.__slots__} == {
        name: getattr(limits, name) for name in Limits.__slots__
    }


@given(st.binary(max_size=20) | st.sampled_from(["nice", "time", "cpus", "signal"]).flatmap(_item).map(str.encode))
def test_limits_of_garbage_are_limits_or_an_error(field: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(Limits.parse(field), Limits)


@pytest.mark.parametrize(
    "field",
    ["time=nan:1", "time=-1:1", "time=1", "signal=0:1", "signal=65:1", "what=1", "umask", "nice=x", "rlimit.as=1"],
)
def test_limits_that_make_no_sense_are_an_error(field: str) -> None:
    with pytest.raises(ProtocolError):
        Limits.parse(field.encode())


_counts = st.lists(st.integers(-3, 4), min_size=4, max_size=7).map(lambda ns: b" ".join(b"%d" % n for n in ns))


@given(st.lists(st.one_of(st.binary(max_size=6), _counts, st.just(b"A=1")), max_size=12))
def test_a_launch_of_garbage_is_a_launch_or_an_error(fields: list[bytes]) -> None:
    with contextlib.suppress(ProtocolError):
        spec = Spec.from_fields(fields)
        assert spec.token
        assert spec.argv
        assert spec.environment({b"B": b"2"}) is not None


def test_a_launch_with_numbers_beyond_reason_is_an_error() -> None:
    for counts in (
        b"9" * 5000 + b" 0 0 0 0 0",
        b"1 0 0 1 -1 0",
        b"1 0 0 1 1",
        b"1 0 0 1 1 -1",
        b"x 0 0 1 1 0",
        b"0 0 0 1 1 0",
    ):
        with pytest.raises(ProtocolError):
            Spec.from_fields([b"token", b"note", b"program", b"", b"", b"", b"", b"", counts, b"argv0"])
    Spec.from_fields([b"token", b"note", b"program", b"", b"", b"", b"", b"", b"1 0 0 1 1 0", b"argv0"])


@pytest.mark.parametrize(
    "stdin", [b"file", b"terminal", b"terminal 1", b"terminal -1 2", b"terminal 1 65536", b"terminal a b"]
)
def test_a_stdin_of_no_known_kind_is_an_error(stdin: bytes) -> None:
    with pytest.raises(ProtocolError):
        Spec.from_fields(Spec(token=b"t", program=b"p", argv=[b"p"], stdin=stdin).fields())


@given(
    st.dictionaries(st.binary(max_size=3), st.binary(max_size=3)),
    st.lists(st.binary(max_size=3)),
    st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=3)).map(b"=".join)),
    st.booleans(),
)
def test_the_environment_is_base_less_unset_plus_additions(
    base: dict[bytes, bytes], unset: list[bytes], environ: list[bytes], inherit: bool
) -> None:
    spec = Spec(token=b"t", program=b"p", argv=[b"p"], environ=environ, unset=unset, inherit=inherit)
    expected = {name: value for name, value in base.items() if inherit and name not in unset}
    for item in environ:
        name, _, value = item.partition(b"=")
        expected[name] = value
    expected.pop(b"", None)
    assert spec.environment(base) == expected


def _no_memory(_: object) -> None:
    raise MemoryError


def test_what_there_was_no_memory_for_can_be_fed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FrameReader()
    frame = pack(b"verb", b"field")
    reader.feed(frame[:7])
    with monkeypatch.context() as short:
        short.setattr("ray_launcher.node.protocol.unpack", _no_memory)
        with pytest.raises(MemoryError):
            reader.feed(frame[7:])
    assert reader.feed(frame[7:] + frame) == [[b"verb", b"field"]] * 2
