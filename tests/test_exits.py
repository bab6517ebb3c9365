"""Exit reports, exit results, and the strict decoding of one into the other."""

from __future__ import annotations

import array
import pickle
import signal
from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, fields
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_launcher.errors import DecodeError
from ray_launcher.exits import (
    Exited,
    ExitReport,
    Failed,
    ProcExitKind,
    ProcExitResult,
    Signaled,
    StdioHandling,
    decode_exit,
)

FIELDS = ["exit_code", "signal", "core_dumped", "failed_reason", "stderr_tail"]
I32 = st.integers(-(2**31), 2**31 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def report(**values: object) -> SimpleNamespace:
    """A report of a foreign class; a clean exit unless told otherwise."""
    plain: dict[str, object] = {
        "exit_code": 0,
        "signal": None,
        "core_dumped": False,
        "failed_reason": None,
        "stderr_tail": [],
    }
    return SimpleNamespace(**plain | values)


def decode_error(obj: object) -> str:
    with pytest.raises(DecodeError) as caught:
        decode_exit(obj)
    return str(caught.value)


def code_of(value: object) -> int:
    kind = decode_exit(report(exit_code=value)).kind
    assert isinstance(kind, Exited)
    return kind.code


def core_of(value: object) -> bool:
    kind = decode_exit(report(signal=11, core_dumped=value)).kind
    assert isinstance(kind, Signaled)
    return kind.core_dumped


def reason_of(value: object) -> str:
    kind = decode_exit(report(failed_reason=value)).kind
    assert isinstance(kind, Failed)
    return kind.reason


def tail_of(value: object) -> list[str] | None:
    return decode_exit(report(stderr_tail=value)).stderr_tail


def kind_of(value: object) -> str:
    """A test id that runs no code of the value's own."""
    return type(value).__name__


class Index:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class BadIndex:
    def __index__(self) -> int:
        raise RuntimeError("no index today")


class LyingInt(int):
    """The C value counts, as in PyLong_AsLong; what the class says about itself does not."""

    def __int__(self) -> int:
        return 99

    def __index__(self) -> int:
        return 99


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "overridden"

    def encode(self, *args: object, **kwargs: object) -> bytes:
        raise RuntimeError("overridden")


class GetItem:
    def __getitem__(self, index: int) -> str:
        return ["a", "b"][index]


class RaisingLen(list[str]):
    def __len__(self) -> int:
        raise RuntimeError("no length today")


class NegativeLen(list[str]):
    def __len__(self) -> int:
        return -1  # noqa: PLE0303 - the wrong thing on purpose


class RaisingIteration:
    def __getitem__(self, index: int) -> str:
        if index:
            raise OSError("line 1 is lost")
        return "line 0"


class IterableOnly:
    def __iter__(self) -> Iterator[str]:
        return iter(["a"])


# --- the report


def test_a_report_takes_its_fields_by_position_in_the_order_of_the_contract() -> None:
    assert [each.name for each in fields(ExitReport)] == FIELDS
    assert ExitReport(1, 2, True, "why", ["a"]) == ExitReport(
        exit_code=1, signal=2, core_dumped=True, failed_reason="why", stderr_tail=["a"]
    )


def test_an_empty_report_says_nothing_is_known() -> None:
    assert decode_exit(ExitReport()) == ProcExitResult(Exited(-1), [])


@pytest.mark.parametrize(
    "value", [ExitReport(3), Exited(3), Signaled(9, False), Failed("why"), ProcExitResult(Exited(3), ["a"])]
)
def test_reports_and_results_are_frozen_and_survive_pickling(value: object) -> None:
    name = "kind" if isinstance(value, ProcExitResult) else fields(value)[0].name  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        setattr(value, name, None)
    assert pickle.loads(pickle.dumps(value)) == value


def test_stdio_handling_has_the_three_ways_of_the_contract() -> None:
    assert [each.name for each in StdioHandling] == ["CAPTURED", "INHERITED", "MANAGED_BY_LAUNCHER"]


# --- the mapping


@pytest.mark.parametrize(
    "given_report,kind",
    [
        (ExitReport(0), Exited(0)),
        (ExitReport(42), Exited(42)),
        (ExitReport(None), Exited(-1)),
        (ExitReport(137, 9), Signaled(9, False)),
        (ExitReport(None, 11, True), Signaled(11, True)),
        (ExitReport(0, 0), Signaled(0, False)),
        (ExitReport(1, 9, True, "why"), Failed("why")),
        (ExitReport(0, None, False, ""), Failed("")),
        (ExitReport(3, None, True), Exited(3)),
    ],
)
def test_a_reason_wins_over_a_signal_which_wins_over_a_code(given_report: ExitReport, kind: ProcExitKind) -> None:
    assert decode_exit(given_report).kind == kind


@pytest.mark.parametrize(
    "given_report", [ExitReport(0), ExitReport(None, 9), ExitReport(failed_reason="why")], ids=["code", "signal", "why"]
)
def test_every_decoded_result_has_a_list_as_tail(given_report: ExitReport) -> None:
    assert decode_exit(given_report).stderr_tail == []


@given(
    code=st.none() | I32,
    number=st.none() | I32,
    core=st.booleans(),
    reason=st.none() | TEXT,
    tail=st.lists(TEXT) | st.lists(TEXT).map(tuple),
)
def test_every_well_typed_report_decodes_by_the_rule_of_priority(
    code: int | None, number: int | None, core: bool, reason: str | None, tail: list[str]
) -> None:
    result = decode_exit(ExitReport(code, number, core, reason, tail))
    assert result.stderr_tail == list(tail)
    if reason is not None:
        assert result.kind == Failed(reason)
    elif number is not None:
        assert result.kind == Signaled(number, core)
    else:
        assert result.kind == Exited(-1 if code is None else code)


# --- the shape


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_attribute_is_named(name: str) -> None:
    obj = report()
    delattr(obj, name)
    assert f"must have the attribute {name}," in decode_error(obj)


@pytest.mark.parametrize("junk", [None, 0, "exit", {"exit_code": 0}, object(), []])
def test_junk_is_refused_with_a_decode_error(junk: object) -> None:
    assert decode_error(junk)


def test_attributes_of_a_class_will_do() -> None:
    class Report:
        exit_code = 42
        signal = None
        core_dumped = False
        failed_reason = None
        stderr_tail = ("line1", "line2")

    assert decode_exit(Report) == decode_exit(Report()) == ProcExitResult(Exited(42), ["line1", "line2"])


def test_all_attributes_are_looked_up_before_any_is_converted() -> None:
    obj = report(exit_code="not an int")
    del obj.stderr_tail
    assert "stderr_tail" in decode_error(obj)


def test_attributes_are_looked_up_in_order_and_then_read_in_order() -> None:
    seen: list[str] = []

    class Recorder:
        def __getattribute__(self, name: str) -> object:
            if name in FIELDS:
                seen.append(name)
            return {"core_dumped": False, "stderr_tail": ()}.get(name)

    decode_exit(Recorder())
    assert seen == FIELDS * 2


@pytest.mark.parametrize("first", range(4))
def test_the_first_of_several_bad_fields_is_named(first: int) -> None:
    bad = dict.fromkeys(FIELDS[first:], 1.5)
    assert decode_error(report(**bad)).startswith(f"extract {FIELDS[first]}: ")


def raising_at(name: str, error: BaseException, reads_before: int) -> object:
    """A report whose attribute ``name`` raises once it has been read ``reads_before`` times."""

    class Raising:
        reads = 0

        def __getattribute__(self, asked: str) -> object:
            if asked == name:
                if Raising.reads >= reads_before:
                    raise error
                Raising.reads += 1
            return getattr(report(), asked)

    return Raising()


@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit("boom"), KeyboardInterrupt("boom")])
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("step,reads_before", [("hasattr", 0), ("getattr", 1)])
def test_an_attribute_that_raises_is_named_with_what_it_raised(
    name: str, error: BaseException, step: str, reads_before: int
) -> None:
    text = decode_error(raising_at(name, error, reads_before))
    assert text == f"{step} {name}: {type(error).__name__}: boom"


def test_an_attribute_error_at_first_means_missing_and_later_is_reported() -> None:
    gone = AttributeError("gone")
    assert "must have the attribute signal," in decode_error(raising_at("signal", gone, 0))
    assert decode_error(raising_at("signal", gone, 1)) == "getattr signal: AttributeError: gone"


def test_an_exception_without_a_text_still_gives_a_decode_error() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError

        __repr__ = __str__

    text = decode_error(raising_at("signal", MuteError(), 0))
    assert text.endswith("MuteError: <error formatting exception>")


# --- exit_code and signal


@pytest.mark.parametrize(
    "value,code",
    [
        (True, 1),
        (False, 0),
        (-(2**31), -(2**31)),
        (2**31 - 1, 2**31 - 1),
        (np.int8(-3), -3),
        (np.int64(7), 7),
        (np.uint32(7), 7),
        (np.array(7), 7),
        (Index(5), 5),
        (Index(True), 1),
        (LyingInt(4), 4),
        (signal.SIGKILL, 9),
    ],
)
@pytest.mark.filterwarnings("ignore:__index__ returned non-int:DeprecationWarning")
def test_whole_numbers_of_any_type_become_exact_ints(value: object, code: int) -> None:
    assert (type(code_of(value)), code_of(value)) == (int, code)


@pytest.mark.parametrize("value", [1.0, "1", b"1", np.float64(1), np.bool_(True), [1], np.array([1, 2]), 1j, object()])
@pytest.mark.parametrize("name", ["exit_code", "signal"])
def test_what_is_no_whole_number_is_a_type_error(name: str, value: object) -> None:
    assert decode_error(report(**{name: value})).startswith(f"extract {name}: TypeError: ")


def test_the_error_for_a_str_as_exit_code_says_what_python_says() -> None:
    text = "extract exit_code: TypeError: 'str' object cannot be interpreted as an integer"
    assert decode_error(report(exit_code="x")) == text


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**63, np.uint32(2**31), Index(2**31), 10**5000], ids=kind_of)
@pytest.mark.parametrize("name", ["exit_code", "signal"])
def test_numbers_beyond_32_bits_are_an_overflow_error(name: str, value: object) -> None:
    assert decode_error(report(**{name: value})).startswith(f"extract {name}: OverflowError: ")


def test_an_index_method_that_raises_is_reported() -> None:
    assert decode_error(report(exit_code=BadIndex())) == "extract exit_code: RuntimeError: no index today"


# --- core_dumped


class FakeNumpyBool:
    def __bool__(self) -> bool:
        return True


@pytest.mark.parametrize("value,core", [(True, True), (False, False), (np.bool_(True), True), (np.bool_(False), False)])
def test_bools_of_python_and_numpy_become_exact_bools(value: object, core: bool) -> None:
    assert core_of(value) is core


@pytest.mark.parametrize("name", ["bool", "bool_"])
def test_a_numpy_bool_is_known_by_the_name_of_its_type(name: str) -> None:
    cls = type(name, (FakeNumpyBool,), {"__module__": "numpy"})
    assert core_of(cls()) is True


@pytest.mark.parametrize("module,name", [("numpy", "boolean"), ("numpy.core", "bool_"), ("builtins", "bool")])
def test_a_bool_of_another_name_is_refused(module: str, name: str) -> None:
    cls = type(name, (FakeNumpyBool,), {"__module__": module})
    assert "is not an instance of 'bool'" in decode_error(report(core_dumped=cls()))


def test_a_numpy_bool_must_define_its_truth() -> None:
    cls = type("bool_", (list,), {"__module__": "numpy"})
    assert "does not define a '__bool__' conversion" in decode_error(report(core_dumped=cls()))


@pytest.mark.parametrize(
    "value", [0, 1, None, "", "True", 0.0, [], np.int8(1), mock.NonCallableMock(spec=bool)], ids=kind_of
)
def test_what_is_no_bool_is_refused_even_where_no_signal_needs_it(value: object) -> None:
    assert decode_error(report(core_dumped=value)).startswith("extract core_dumped: TypeError: ")


# --- failed_reason


@pytest.mark.parametrize("value", ["why", "", "Grüße 🦀", Text("why"), np.str_("why")], ids=ascii)
def test_reasons_become_exact_strs(value: str) -> None:
    assert type(reason_of(value)) is str
    assert reason_of(value) == str.__str__(value)


@pytest.mark.parametrize("value", [b"why", 1, False, ["why"], mock.NonCallableMock(spec=str)], ids=kind_of)
def test_what_is_no_str_is_refused_as_reason(value: object) -> None:
    text = decode_error(report(failed_reason=value))
    assert text.startswith("extract failed_reason: TypeError: ")
    assert text.endswith("is not an instance of 'str'")


@pytest.mark.parametrize("value", ["\ud800", "a\udcff", Text("\udc80")], ids=ascii)
@pytest.mark.parametrize("wrap,name", [(str.__str__, "failed_reason"), (lambda text: ["a", text], "stderr_tail")])
def test_lone_surrogates_are_refused(value: str, wrap: Callable[[str], object], name: str) -> None:
    assert decode_error(report(**{name: wrap(value)})).startswith(f"extract {name}: UnicodeEncodeError: ")


# --- stderr_tail


@pytest.mark.parametrize(
    "value,tail",
    [
        (["a", "b"], ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        (deque(["a"]), ["a"]),
        (UserList(["a"]), ["a"]),
        (UserDict({"a": 1}), ["a"]),
        (np.array(["a", "b"]), ["a", "b"]),
        (GetItem(), ["a", "b"]),
        (RaisingLen(["a"]), ["a"]),
        (NegativeLen(["a"]), ["a"]),
        ([Text("a")], ["a"]),
        (b"", []),
        (bytearray(), []),
        (range(0), []),
        (array.array("i"), []),
        (memoryview(b""), []),
    ],
    ids=kind_of,
)
def test_any_sequence_of_str_becomes_a_list_of_exact_strs(value: object, tail: list[str]) -> None:
    decoded = tail_of(value)
    assert decoded == tail
    assert type(decoded) is list
    assert {type(line) for line in decoded} <= {str}


@pytest.mark.parametrize("value", ["", "abc", Text("abc"), np.str_("abc")], ids=ascii)
def test_a_str_is_no_tail(value: str) -> None:
    assert decode_error(report(stderr_tail=value)) == "extract stderr_tail: TypeError: Can't extract `str` to `Vec`"


@pytest.mark.parametrize(
    "value",
    [
        (line for line in ["a"]),
        iter(["a"]),
        {"a"},
        frozenset(),
        {"a": 1},
        {},
        {}.keys(),
        MappingProxyType({}),
        IterableOnly(),
        None,
        3,
        object(),
    ],
    ids=kind_of,
)
def test_what_is_no_sequence_is_refused_as_tail(value: object) -> None:
    text = decode_error(report(stderr_tail=value))
    assert text.startswith("extract stderr_tail: TypeError: ")
    assert text.endswith("is not an instance of 'Sequence'")


@pytest.mark.parametrize("value", [["a", 1], ["a", None], [b"a"], b"a", range(2), [["a"]], np.array([1])])
def test_a_tail_with_anything_but_str_in_it_is_refused(value: Any) -> None:
    assert decode_error(report(stderr_tail=value)).endswith("is not an instance of 'str'")


def test_a_tail_whose_iteration_raises_is_reported() -> None:
    assert decode_error(report(stderr_tail=RaisingIteration())) == "extract stderr_tail: OSError: line 1 is lost"


@pytest.mark.parametrize("value", [np.array("a"), type("Lost", (list,), {"__iter__": None})()])
def test_a_sequence_that_cannot_be_iterated_is_a_type_error(value: object) -> None:
    assert decode_error(report(stderr_tail=value)).startswith("extract stderr_tail: TypeError: ")


# --- the result


@pytest.mark.parametrize(
    "kind,text",
    [
        (Exited(3), "exited with code 3"),
        (Exited(0), "exited with code 0"),
        (Exited(-1), "exited with code -1 (unknown)"),
        (Signaled(9, False), "killed by SIGKILL"),
        (Signaled(11, True), "killed by SIGSEGV (core dumped)"),
        (Signaled(34, False), "killed by SIGRTMIN"),
        (Signaled(36, False), "killed by SIGRTMIN+2"),
        (Signaled(64, False), "killed by SIGRTMAX"),
        (Signaled(0, False), "killed by signal 0"),
        (Signaled(33, False), "killed by signal 33"),
        (Signaled(65, True), "killed by signal 65 (core dumped)"),
        (Signaled(-5, False), "killed by signal -5"),
        (Signaled(2**31 - 1, False), "killed by signal 2147483647"),
        (Failed("program not found: x"), "failed: program not found: x"),
        (Failed(""), "failed: no reason given"),
    ],
)
def test_a_result_reads_well(kind: ProcExitKind, text: str) -> None:
    assert str(ProcExitResult(kind, [])) == str(kind) == text


@pytest.mark.parametrize(
    "kind,code",
    [(Exited(0), 0), (Exited(3), 3), (Exited(-1), -1), (Signaled(9, False), -9), (Failed("why"), None)],
)
def test_returncode_is_that_of_subprocess(kind: ProcExitKind, code: int | None) -> None:
    assert ProcExitResult(kind, []).returncode == code


def test_the_returncode_of_signal_0_is_not_that_of_success() -> None:
    assert ProcExitResult(Signaled(0, False), []).returncode is None


def test_only_code_0_is_ok() -> None:
    assert ProcExitResult(Exited(0), []).ok is True


@pytest.mark.parametrize("kind", [Exited(1), Exited(-1), Signaled(0, False), Signaled(9, False), Failed("")])
def test_everything_else_is_not_ok(kind: ProcExitKind) -> None:
    assert ProcExitResult(kind, []).ok is False
