"""Launch options: what is accepted, what is stored, and what is refused in which words."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import math
import os
import pickle
import resource
import signal
from collections import UserDict, deque
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_launcher.options import LaunchOptions, Placement, ProcBind, check_proc_id, check_timeout
from ray_launcher.readiness import ReadyWhen

OPTION_TYPES = [LaunchOptions, Placement, ProcBind]
SECRET = "s3cret"

# What os.fsdecode can return, but for NUL.
OS_TEXT = st.binary().map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
ENV_NAME = OS_TEXT.map(lambda name: name.replace("=", "")).filter(bool)


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "overridden"

    def __contains__(self, part: object) -> bool:
        return False


class BytesPath(os.PathLike[bytes]):
    def __fspath__(self) -> bytes:
        return b"/bin/true"


class Index:
    def __index__(self) -> int:
        return 3


def kind_of(value: object) -> str:
    """A test id that runs no code of the value's own."""
    return type(value).__name__


def options(**changes: Any) -> LaunchOptions:
    return LaunchOptions(**{"program": "true"} | changes)


def full_options() -> LaunchOptions:
    return LaunchOptions(
        program="/bin/sh",
        args=["-c", "exit 3", "\udcff"],
        arg0="sh",
        env={"TOKEN": SECRET, "EMPTY": ""},
        inherit_env=False,
        env_remove=["SLURM_*"],
        cwd="/",
        want_stdio=False,
        want_stdin=True,
        tty=True,
        tty_size=(50, 132),
        tail_lines=7,
        log_limit=1 << 20,
        process_name="p",
        bootstrap_payload=SECRET,
        log_channel="tcp:1",
        proc_bind=ProcBind(cpus="0-3,8", membind="0"),
        rlimits={"nofile": 100, "core": (0, None)},
        umask=0o77,
        nice=5,
        time_limit=60,
        time_limit_grace=1,
        pre_kill_signal=(10, 5),
        max_restarts=3,
        restart_delay=5,
        ready_when=ReadyWhen(port=80),
        placement=Placement(num_cpus=1, num_gpus=0.5, resources={"x": 2}, label_selector={"zone": "!a"}, timeout=3),
    )


def refused(error: type[Exception], where: str, **changes: Any) -> str:
    with pytest.raises(error) as caught:
        options(**changes)
    text = str(caught.value)
    assert text.startswith(where)
    return text


# --- the whole


def test_the_defaults_are_those_of_the_contract() -> None:
    plain = LaunchOptions(program="true")
    assert {each.name: getattr(plain, each.name) for each in dataclasses.fields(plain)} == {
        "program": "true",
        "args": (),
        "arg0": None,
        "env": {},
        "inherit_env": True,
        "env_remove": (),
        "cwd": None,
        "want_stdio": True,
        "want_stdin": False,
        "tty": False,
        "tty_size": (24, 80),
        "tail_lines": 100,
        "log_limit": None,
        "process_name": None,
        "bootstrap_payload": None,
        "log_channel": None,
        "proc_bind": None,
        "rlimits": {},
        "umask": None,
        "nice": None,
        "time_limit": None,
        "time_limit_grace": 10,
        "pre_kill_signal": None,
        "max_restarts": 0,
        "restart_delay": 10.0,
        "ready_when": None,
        "secrets": {},
        "forget": False,
        "placement": Placement(),
    }
    assert dataclasses.asdict(Placement()) == {
        "num_cpus": 0,
        "num_gpus": 0,
        "memory": 0,
        "resources": {},
        "label_selector": {},
        "node_id": None,
        "timeout": None,
        "gpu_mask": None,
    }
    assert set(dataclasses.asdict(ProcBind()).items()) == {
        ("cpunodebind", None),
        ("membind", None),
        ("physcpubind", None),
        ("cpus", None),
    }


def test_the_typed_signature_lists_the_fields_with_their_defaults() -> None:
    tree = ast.parse(inspect.getsource(LaunchOptions))
    typed = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__").args
    defaults = [... if default is None else ast.literal_eval(default) for default in typed.kw_defaults]
    expected = [
        (each.name, ... if each.default is dataclasses.MISSING else each.default)
        for each in dataclasses.fields(LaunchOptions)
    ]
    assert list(zip((arg.arg for arg in typed.kwonlyargs), defaults, strict=True)) == expected


@pytest.mark.parametrize("cls", OPTION_TYPES)
def test_options_take_keywords_only(cls: type) -> None:
    with pytest.raises(TypeError, match="positional"):
        cls("true")


@pytest.mark.parametrize("value", [options(), Placement(), ProcBind()], ids=kind_of)
def test_options_are_frozen(value: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, "x")


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_options_survive_pickling(pickler: Any) -> None:
    restored = pickle.loads(pickler.dumps(full_options()))
    assert restored == full_options()
    assert hash(restored) == hash(full_options())


def test_options_can_be_copied_and_hashed() -> None:
    assert copy.deepcopy(full_options()) == copy.copy(full_options()) == full_options()
    assert len({full_options(), full_options(), options()}) == 2


def test_replace_changes_one_field_and_keeps_the_rest() -> None:
    changed = dataclasses.replace(full_options(), program="ls")
    assert changed.program == "ls"
    assert dataclasses.replace(changed, program="/bin/sh") == full_options()


def test_replace_checks_again() -> None:
    with pytest.raises(ValueError, match=r"LaunchOptions\.tail_lines"):
        dataclasses.replace(options(), tail_lines=-1)


def test_the_repr_hides_env_values_and_the_payload_and_shows_the_rest() -> None:
    for shown in (repr(full_options()), str(full_options()), f"{full_options()}"):
        assert SECRET not in shown
        assert "env={'TOKEN': '***', 'EMPTY': '***'}" in shown
        assert "bootstrap_payload='***'" in shown
        assert "program='/bin/sh'" in shown


def test_the_repr_tells_a_missing_payload_from_a_hidden_one() -> None:
    assert "bootstrap_payload=None" in repr(options())


@pytest.mark.parametrize(
    "changes",
    [
        {"env": {"TOKEN": SECRET + "\0"}},
        {"env": {"TOKEN": SECRET + "\ud800"}},
        {"env": {"TOKEN": SECRET.encode()}},
        {"env": SECRET},
        {"bootstrap_payload": SECRET + "\0"},
        {"bootstrap_payload": SECRET.encode()},
        {"args": [SECRET + "\0"]},
    ],
)
def test_no_error_shows_a_value(changes: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        options(**changes)
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None


# --- texts


@pytest.mark.parametrize("name", ["program", "cwd"])
def test_paths_may_be_path_objects(name: str) -> None:
    assert getattr(options(**{name: PurePosixPath("/a b")}), name) == "/a b"


def test_args_may_be_any_iterable_of_strs_and_paths_and_become_a_tuple() -> None:
    for args in (["a", Path("b")], ("a", "b"), deque("ab"), iter("ab"), {"a": 1, "b": 2}, map(str, "ab")):
        assert options(args=args).args == ("a", "b")


def test_an_empty_argument_is_kept() -> None:
    assert options(args=["", "a", ""]).args == ("", "a", "")


@pytest.mark.parametrize("name", ["program", "arg0", "cwd", "process_name", "bootstrap_payload", "log_channel"])
def test_subclasses_of_str_become_exact_strs(name: str) -> None:
    stored = getattr(options(**{name: Text("a")}), name)
    assert (type(stored), stored) == (str, "a")


def test_subclasses_of_str_in_collections_become_exact_strs() -> None:
    made = options(args=[Text("a")], env={Text("b"): Text("c")}, env_remove=[Text("d")])
    stored = [*made.args, *made.env.keys(), *made.env.values(), *made.env_remove]
    assert stored == ["a", "b", "c", "d"]
    assert {type(text) for text in stored} == {str}


@pytest.mark.parametrize("name", ["program", "arg0", "cwd", "process_name", "bootstrap_payload", "log_channel"])
@pytest.mark.parametrize("value", [1, True, ["a"], object()], ids=kind_of)
def test_what_is_no_str_is_a_type_error(name: str, value: object) -> None:
    refused(TypeError, f"LaunchOptions.{name} must be str, not {type(value).__name__}", **{name: value})


@pytest.mark.parametrize("value", [b"a", BytesPath()], ids=kind_of)
@pytest.mark.parametrize("name", ["program", "cwd"])
def test_bytes_are_refused_with_the_way_out(name: str, value: object) -> None:
    assert "os.fsdecode" in refused(TypeError, f"LaunchOptions.{name} must be str, not bytes", **{name: value})


def test_program_is_required() -> None:
    refused(TypeError, "LaunchOptions.program must be str, not None", program=None)


@pytest.mark.parametrize("name", ["program", "cwd"])
def test_an_empty_path_is_refused(name: str) -> None:
    refused(ValueError, f"LaunchOptions.{name} is empty", **{name: ""})


@pytest.mark.parametrize("text", ["a\0b", Text("a\0b"), *map(chr, (0xD800, 0xDC7F, 0xDD00, 0xDFFF))], ids=ascii)
@pytest.mark.parametrize(
    "where,wrap",
    [
        ("LaunchOptions.program", lambda text: {"program": text}),
        ("LaunchOptions.args[1]", lambda text: {"args": ["ok", text]}),
        ("LaunchOptions.arg0", lambda text: {"arg0": text}),
        ("LaunchOptions.env: a name", lambda text: {"env": {text: "v"}}),
        ("LaunchOptions.env['A']", lambda text: {"env": {"A": text}}),
        ("LaunchOptions.env_remove[0]", lambda text: {"env_remove": [text]}),
        ("LaunchOptions.cwd", lambda text: {"cwd": text}),
        ("LaunchOptions.process_name", lambda text: {"process_name": text}),
        ("LaunchOptions.bootstrap_payload", lambda text: {"bootstrap_payload": text}),
        ("LaunchOptions.log_channel", lambda text: {"log_channel": text}),
    ],
)
def test_nul_and_lone_surrogates_are_refused_wherever_a_text_goes(where: str, wrap: Any, text: str) -> None:
    refused(ValueError, where, **wrap(text))


@given(program=OS_TEXT.filter(bool), args=st.lists(OS_TEXT), env=st.dictionaries(ENV_NAME, OS_TEXT))
def test_whatever_fsdecode_returns_is_stored_unchanged(program: str, args: list[str], env: dict[str, str]) -> None:
    made = options(program=program, args=args, env=env)
    assert (made.program, list(made.args), dict(made.env)) == (program, args, env)


@given(program=st.text(), args=st.lists(st.text()), env=st.dictionaries(st.text(), st.text()))
def test_what_is_accepted_can_be_encoded_for_exec(program: str, args: list[str], env: dict[str, str]) -> None:
    try:
        made = options(program=program, args=args, env=env)
    except ValueError:
        return
    for text in (made.program, *made.args, *made.env, *made.env.values()):
        assert b"\0" not in text.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("name", ["args", "env_remove"])
@pytest.mark.parametrize("value", ["SLURM_*", b"abc", Text("ab")], ids=kind_of)
def test_a_single_str_is_no_list_of_them(name: str, value: object) -> None:
    assert "brackets" in refused(TypeError, f"LaunchOptions.{name} must be a list or tuple of str", **{name: value})


@pytest.mark.parametrize("value", [None, 3, Path("a")], ids=kind_of)
@pytest.mark.parametrize("name", ["args", "env_remove"])
def test_what_cannot_be_iterated_is_no_list(name: str, value: object) -> None:
    refused(TypeError, f"LaunchOptions.{name} must be a list or tuple of str, not", **{name: value})


@pytest.mark.parametrize("name", ["args", "env_remove"])
def test_a_bad_item_is_named_by_its_index(name: str) -> None:
    refused(TypeError, f"LaunchOptions.{name}[1] must be str, not int", **{name: ["a", 1]})


def test_globs_become_a_tuple() -> None:
    assert options(env_remove=["SLURM_*", "PMI_?"]).env_remove == ("SLURM_*", "PMI_?")


def test_an_empty_glob_is_refused() -> None:
    refused(ValueError, "LaunchOptions.env_remove[0] is empty", env_remove=[""])


# --- env


@pytest.mark.parametrize("env", [{"A": "1"}, UserDict({"A": "1"}), options(env={"A": "1"}).env], ids=kind_of)
def test_env_may_be_any_mapping(env: Mapping[str, str]) -> None:
    assert options(env=env).env == {"A": "1"}


def test_env_may_be_the_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LAUNCHER_TEST", "1")
    assert options(env=os.environ).env["RAY_LAUNCHER_TEST"] == "1"


def test_env_is_a_copy_that_cannot_be_changed() -> None:
    env = {"A": "1"}
    made = options(env=env)
    env["A"] = "2"
    assert made.env == {"A": "1"}
    with pytest.raises(TypeError):
        made.env["A"] = "2"  # type: ignore[index]


@pytest.mark.parametrize("env", [None, [("A", "1")], "A=1"], ids=kind_of)
def test_env_must_be_a_mapping(env: object) -> None:
    refused(TypeError, "LaunchOptions.env must be a mapping", env=env)


@pytest.mark.parametrize("name", ["A=B", "=", "=A", "A="])
def test_an_env_name_with_an_equals_sign_is_refused_by_name(name: str) -> None:
    refused(ValueError, f"LaunchOptions.env[{name!r}]", env={"OK": "1", name: "x"})


def test_an_empty_env_name_is_refused() -> None:
    refused(ValueError, "LaunchOptions.env: a name is empty", env={"": "x"})


@pytest.mark.parametrize("name", [1, None, b"A", Path("A")], ids=kind_of)
def test_an_env_name_must_be_a_str(name: object) -> None:
    refused(TypeError, "LaunchOptions.env: a name must be str", env={name: "x"})


@pytest.mark.parametrize("value", [1, None, b"x", Path("x"), True], ids=kind_of)
def test_an_env_value_must_be_a_str(value: object) -> None:
    refused(TypeError, "LaunchOptions.env['A'] must be str", env={"A": value})


def test_an_env_value_may_be_empty_and_hold_equals_signs() -> None:
    assert options(env={"A": "", "B": "x=y="}).env == {"A": "", "B": "x=y="}


def test_a_long_env_name_is_cut_in_the_message() -> None:
    assert len(refused(ValueError, "LaunchOptions.env['AAAA", env={"A" * 100_000 + "=": "x"})) < 300


# --- flags, counts, parts


@pytest.mark.parametrize("name", ["inherit_env", "want_stdio", "want_stdin", "tty"])
@pytest.mark.parametrize("value", [0, 1, None, "yes", np.bool_(True)], ids=kind_of)
def test_a_flag_is_a_real_bool(name: str, value: object) -> None:
    refused(TypeError, f"LaunchOptions.{name} must be True or False", **{name: value})


@pytest.mark.parametrize("value,lines", [(0, 0), (5, 5), (np.int64(5), 5), (Index(), 3), (10**30, 10**30)])
def test_tail_lines_may_be_any_whole_number_and_becomes_an_exact_int(value: Any, lines: int) -> None:
    stored = options(tail_lines=value).tail_lines
    assert (type(stored), stored) == (int, lines)


@pytest.mark.parametrize("value", [True, 1.0, "5", None, np.bool_(True), np.array([1, 2])], ids=kind_of)
def test_tail_lines_is_no_other_type(value: object) -> None:
    refused(TypeError, "LaunchOptions.tail_lines must be an int", tail_lines=value)


@pytest.mark.parametrize("value", [65_535, 0, -1, 1 << 63])
def test_a_log_limit_that_no_line_of_a_tail_would_fit_into_is_refused(value: int) -> None:
    refused(ValueError, "LaunchOptions.log_limit is out of range; write a number from 65536", log_limit=value)


def test_a_log_limit_is_a_whole_number_of_bytes_or_none() -> None:
    assert options(log_limit=65_536).log_limit == 65_536
    refused(TypeError, "LaunchOptions.log_limit must be an int", log_limit="64Ki")
    refused(TypeError, "LaunchOptions.log_limit must be an int", log_limit=True)


def test_tail_lines_is_not_negative() -> None:
    refused(ValueError, "LaunchOptions.tail_lines must not be negative", tail_lines=-1)


@pytest.mark.parametrize("value", [None, {"num_cpus": 1}, ProcBind()], ids=kind_of)
def test_placement_must_be_a_placement(value: object) -> None:
    refused(TypeError, "LaunchOptions.placement must be a Placement", placement=value)


@pytest.mark.parametrize("value", ["0-3", {"cpus": "0"}, Placement()], ids=kind_of)
def test_proc_bind_must_be_a_proc_bind(value: object) -> None:
    refused(TypeError, "LaunchOptions.proc_bind must be a ProcBind", proc_bind=value)


# --- ProcBind


@pytest.mark.parametrize("name", [each.name for each in dataclasses.fields(ProcBind)])
@pytest.mark.parametrize("value", ["0", "0-3", "0-3,8", "0,2,4", "5-5", "0-99999", "07"])
def test_a_binding_is_a_list_of_numbers_and_ranges(name: str, value: str) -> None:
    assert getattr(ProcBind(**{name: value}), name) == value


@pytest.mark.parametrize(
    "value",
    ["", " ", "a", "0-", "-3", "0--3", "0-1-2", "0,", ",0", "0,,1", "0 ,1", "0\n", "3-1", "٣", "100000", "all", "!0"],
)
@pytest.mark.parametrize("name", [each.name for each in dataclasses.fields(ProcBind)])
def test_any_other_binding_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^ProcBind.{name} "):
        ProcBind(**{name: value})


@pytest.mark.parametrize("value", [0, [0, 1], b"0", True], ids=kind_of)
def test_a_binding_must_be_a_str(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^ProcBind.cpus must be str"):
        ProcBind(cpus=value)


# --- limits


@pytest.mark.parametrize(
    "value,stored",
    [
        (65536, (65536, 65536)),
        (0, (0, 0)),
        (None, (-1, -1)),
        (resource.RLIM_INFINITY, (-1, -1)),
        ((1, 2), (1, 2)),
        ([1, None], (1, -1)),
        ((np.int64(3), Index()), (3, 3)),
    ],
)
def test_an_rlimit_is_stored_as_soft_and_hard(value: Any, stored: tuple[int, int]) -> None:
    assert options(rlimits={"NoFile": value}).rlimits == {"nofile": stored}


def test_every_rlimit_of_the_resource_module_is_known() -> None:
    names = [name for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"]  # an alias
    assert len(options(rlimits={name.removeprefix("RLIMIT_"): 1 for name in names}).rlimits) == len(names)


@pytest.mark.parametrize("value", [True, 1.0, "5", "unlimited", (1, True), (1, "2")], ids=str)
def test_an_rlimit_is_no_other_type(value: object) -> None:
    refused(TypeError, "LaunchOptions.rlimits['core']", rlimits={"core": value})


@pytest.mark.parametrize("value", [-2, 2**63, (2, 1), (None, 1), (), (1, 2, 3)], ids=str)
def test_an_rlimit_is_no_other_value(value: object) -> None:
    refused(ValueError, "LaunchOptions.rlimits['core']", rlimits={"core": value})


def test_an_unknown_rlimit_is_refused_with_those_that_there_are() -> None:
    assert "nofile" in refused(
        ValueError, "LaunchOptions.rlimits['RLIMIT_NOFILE'] is no limit", rlimits={"RLIMIT_NOFILE": 1}
    )
    refused(ValueError, "LaunchOptions.rlimits['CORE'] is there twice", rlimits={"core": 0, "CORE": 0})
    refused(TypeError, "LaunchOptions.rlimits must be a mapping", rlimits=[("core", 0)])


@pytest.mark.parametrize("name,lowest,highest", [("umask", 0, 0o777), ("nice", -20, 19)])
def test_umask_and_nice_are_whole_numbers_within_their_ranges(name: str, lowest: int, highest: int) -> None:
    for value in (lowest, highest):
        assert getattr(options(**{name: value}), name) == value
    for value in (lowest - 1, highest + 1):
        refused(ValueError, f"LaunchOptions.{name} is out of range; write a number from ", **{name: value})
    for wrong in (True, 1.0, "7"):
        refused(TypeError, f"LaunchOptions.{name} must be an int", **{name: wrong})


def test_an_infinite_time_limit_is_none() -> None:
    assert options(time_limit=math.inf).time_limit is None
    assert type(options(time_limit=5).time_limit) is float


@pytest.mark.parametrize("name,value", [("time_limit", 0), ("time_limit", -1), ("time_limit_grace", -1)])
def test_a_time_limit_is_more_than_zero_and_its_grace_not_less(name: str, value: float) -> None:
    refused(ValueError, f"LaunchOptions.{name} must ", **{name: value})


@pytest.mark.parametrize("name", ["time_limit", "time_limit_grace"])
@pytest.mark.parametrize("value", ["60", True], ids=kind_of)
def test_a_time_limit_and_its_grace_are_numbers(name: str, value: object) -> None:
    refused(TypeError, f"LaunchOptions.{name} must be a number", **{name: value})


def test_a_pre_kill_signal_is_a_signal_and_a_time_before_the_limit() -> None:
    made = options(time_limit=60, pre_kill_signal=[signal.SIGUSR1, 30]).pre_kill_signal
    assert made == (10, 30.0)
    assert made is not None
    assert [type(part) for part in made] == [int, float]


@pytest.mark.parametrize("value", [10, "USR1@30", (10,), ("USR1", 30), (10, "30"), (True, 30), {10: 1, 2: 3}], ids=str)
def test_a_pre_kill_signal_is_no_other_type(value: object) -> None:
    refused(TypeError, "LaunchOptions.pre_kill_signal", time_limit=60, pre_kill_signal=value)


@pytest.mark.parametrize("value", [(0, 1), (65, 1), (32, 1), (10, 0), (10, 60), (10, 61), (10, math.nan)], ids=str)
def test_a_pre_kill_signal_that_cannot_be_is_refused(value: object) -> None:
    refused(ValueError, "LaunchOptions.pre_kill_signal[", time_limit=60, pre_kill_signal=value)


def test_a_pre_kill_signal_needs_a_time_limit() -> None:
    assert "set LaunchOptions.time_limit" in refused(ValueError, "LaunchOptions.pre_kill", pre_kill_signal=(10, 1))


# --- Placement


@pytest.mark.parametrize("name", ["num_cpus", "num_gpus", "memory"])
@pytest.mark.parametrize(
    "value,stored",
    [
        (0, 0),
        (2, 2),
        (0.5, 0.5),
        (-0.0, 0.0),
        (0.0001, 0.0001),
        (np.int32(2), 2),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (Fraction(1, 2), 0.5),
        (2**60 + 1, 2**60 + 1),
    ],
)
def test_a_quantity_may_be_any_real_number_and_becomes_a_plain_one(name: str, value: Any, stored: float) -> None:
    plain = getattr(Placement(**{name: value}), name)
    assert (type(plain), plain, math.copysign(1, plain)) == (type(stored), stored, 1)


@pytest.mark.parametrize("value", [True, np.bool_(True), "1", None, 1j, Decimal(1), [1]], ids=kind_of)
@pytest.mark.parametrize("name", ["num_cpus", "num_gpus", "memory"])
def test_a_quantity_must_be_a_number(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^Placement.{name} must be a number"):
        Placement(**{name: value})


@pytest.mark.parametrize(
    "value", [-1, -0.5, math.nan, math.inf, -math.inf, 10**400, 0.00001, np.float64("nan")], ids=str
)
@pytest.mark.parametrize("name", ["num_cpus", "num_gpus", "memory"])
def test_a_quantity_is_finite_not_negative_and_not_too_fine(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^Placement.{name} "):
        Placement(**{name: value})


def test_more_than_one_gpu_means_whole_gpus() -> None:
    assert Placement(num_gpus=2.0).num_gpus == 2
    with pytest.raises(ValueError, match=r"^Placement\.num_gpus must be whole above 1"):
        Placement(num_gpus=1.5)


def test_resources_are_a_read_only_copy() -> None:
    source = {"x": np.float64(0.5), "y": 2}
    stored = Placement(resources=source).resources
    source["x"] = 3
    assert stored == {"x": 0.5, "y": 2}
    assert [type(value) for value in stored.values()] == [float, int]


@pytest.mark.parametrize("name,own", [("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory")])
def test_resources_with_a_field_of_their_own_are_refused_with_its_name(name: str, own: str) -> None:
    with pytest.raises(ValueError, match=rf"^Placement.resources\['{name}'\] .* Placement\({own}=") as caught:
        Placement(resources={name: 1})
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "value,error,text",
    [
        ({"x": -1}, ValueError, "Placement.resources['x'] must not be negative"),
        ({"x": math.nan}, ValueError, "Placement.resources['x'] is NaN"),
        ({"x": True}, TypeError, "Placement.resources['x'] must be a number, not bool"),
        ({"x": "1"}, TypeError, "Placement.resources['x'] must be a number, not str"),
        ({"": 1}, ValueError, "Placement.resources: a name is empty"),
        ({1: 1}, TypeError, "Placement.resources: a name must be str, not int"),
        ({"\udcff": 1}, ValueError, "Placement.resources: a name contains a lone surrogate"),
        (["x"], TypeError, "Placement.resources must be a mapping, not list"),
        (None, TypeError, "Placement.resources must be a mapping, not None"),
    ],
)
def test_bad_resources_are_named(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        Placement(resources=value)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("value", ["a", "!a", "in(a,b)", "!in(a,b)", ""])
def test_labels_select_by_rays_expressions(value: str) -> None:
    assert Placement(label_selector={"zone": value}).label_selector == {"zone": value}


@pytest.mark.parametrize(
    "value,error,text",
    [
        ({"zone": 1}, TypeError, "Placement.label_selector['zone'] must be str, not int"),
        ({"": "a"}, ValueError, "Placement.label_selector: a name is empty"),
        ({"zone": "\udcff"}, ValueError, "Placement.label_selector['zone'] contains a lone surrogate"),
        ("zone=a", TypeError, "Placement.label_selector must be a mapping, not str"),
    ],
)
def test_bad_labels_are_named(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        Placement(label_selector=value)
    assert str(caught.value).startswith(text)


def test_a_node_id_is_a_str_that_is_not_empty() -> None:
    assert Placement(node_id=Text("ab12")).node_id == "ab12"
    with pytest.raises(ValueError, match=r"^Placement\.node_id is empty"):
        Placement(node_id="")
    with pytest.raises(TypeError, match=r"^Placement\.node_id must be str, not bytes"):
        Placement(node_id=b"ab12")  # type: ignore[arg-type]


@pytest.mark.parametrize("value,stored", [(None, None), (math.inf, None), (0, 0.0), (2, 2.0), (np.float32(0.5), 0.5)])
def test_a_wait_is_seconds_and_for_ever_is_none(value: Any, stored: float | None) -> None:
    plain = Placement(timeout=value).timeout
    assert (type(plain), plain) == (type(stored), stored)


@pytest.mark.parametrize("value,error", [(-1, ValueError), (math.nan, ValueError), (True, TypeError), ("1", TypeError)])
def test_a_wait_is_nothing_else(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^Placement\.timeout "):
        Placement(timeout=value)


@pytest.mark.parametrize("value", [None, "proc", "node", "inherit"])
def test_the_gpu_mask_is_one_of_three_or_none(value: Any) -> None:
    assert Placement(gpu_mask=value).gpu_mask == value


@pytest.mark.parametrize("value,error", [("all", ValueError), ("", ValueError), (0, TypeError), (True, TypeError)])
def test_an_unknown_gpu_mask_is_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^Placement\.gpu_mask "):
        Placement(gpu_mask=value)


# --- check_proc_id, check_timeout


@pytest.mark.parametrize("value", ["a", "gang/0", "../../etc", "a b\n", "Grüße 🦀", "x" * 4096, Text("a")], ids=ascii)
def test_a_proc_id_may_hold_any_character(value: str) -> None:
    checked = check_proc_id(value)
    assert (type(checked), checked) == (str, str.__str__(value))


@pytest.mark.parametrize(
    "value", ["", "a\0", *map(chr, (0xDCFF, 0xD800)), "x" * 4097, "é" * 2049], ids=lambda v: ascii(v[:5])
)
def test_a_proc_id_is_not_empty_encodable_without_nul_and_bounded(value: str) -> None:
    with pytest.raises(ValueError, match=r"^proc_id "):
        check_proc_id(value)


@pytest.mark.parametrize("value", [None, 1, b"a", Path("a"), ["a"]], ids=kind_of)
def test_a_proc_id_is_a_str(value: object) -> None:
    with pytest.raises(TypeError, match=r"^proc_id must be str"):
        check_proc_id(value)


@pytest.mark.parametrize(
    "value,seconds",
    [(0, 0.0), (-0.0, 0.0), (1.5, 1.5), (np.float32(0.5), 0.5), (np.int64(3), 3.0), (math.inf, math.inf)],
)
def test_a_timeout_becomes_a_plain_float(value: object, seconds: float) -> None:
    checked = check_timeout("terminate(timeout)", value)
    assert (type(checked), checked, math.copysign(1, checked)) == (float, seconds, 1)


@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, -math.inf, 10**400], ids=str)
def test_a_timeout_is_not_negative_nan_or_beyond_float(value: object) -> None:
    with pytest.raises(ValueError, match=r"^terminate\(timeout\) "):
        check_timeout("terminate(timeout)", value)


@pytest.mark.parametrize("value", [None, True, "1", [1], np.bool_(True)], ids=kind_of)
def test_a_timeout_is_a_number(value: object) -> None:
    with pytest.raises(TypeError, match=r"^terminate\(timeout\) "):
        check_timeout("terminate(timeout)", value)


def test_a_timeout_of_none_is_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"math\.inf"):
        check_timeout("grace", None)
