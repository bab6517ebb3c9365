"""The environment, arguments and working directory that a program gets."""

from __future__ import annotations

import os
from pathlib import Path

from node_rig import Rig

_ENV = "/usr/bin/env"


def _environment(rig: Rig, token: bytes) -> dict[bytes, bytes]:
    assert rig.exit(token).value == 0
    pairs = dict(item.split(b"=", 1) for item in rig.output(token).split(b"\0") if item)
    del pairs[b"RAY_LAUNCHER_ID"]  # of this rig's own
    return pairs


def test_the_base_is_inherited_and_then_added_to(rig: Rig) -> None:
    rig.wire.send(b"base", b"A=1", b"B=2")
    token = rig.launch(_ENV, "-0", env={"B": "3", "C": "4"})
    assert _environment(rig, token) == {b"A": b"1", b"B": b"3", b"C": b"4"}


def test_unset_takes_out_of_the_base_before_additions(rig: Rig) -> None:
    rig.wire.send(b"base", b"A=1", b"B=2", b"C=3")
    token = rig.launch(_ENV, "-0", env={"B": "new"}, unset=[b"A", b"B", b"NOT_THERE"])
    assert _environment(rig, token) == {b"B": b"new", b"C": b"3"}


def test_without_inheritance_there_is_only_what_is_given(rig: Rig) -> None:
    token = rig.launch(_ENV, "-0", env={"ONLY": "this"}, inherit=False)
    assert _environment(rig, token) == {b"ONLY": b"this"}


def test_a_later_base_replaces_the_earlier_one(rig: Rig) -> None:
    rig.wire.send(b"base", b"A=1")
    rig.wire.send(b"base", b"B=2")
    assert _environment(rig, rig.launch(_ENV, "-0")) == {b"B": b"2"}


def test_bytes_that_are_no_text_pass_through(rig: Rig) -> None:
    rig.wire.send(b"base", b"BASE=\xff\xfe")
    token = rig.launch(_ENV, "-0", environ=[b"N\xe9=\x80\n=x"])
    assert _environment(rig, token) == {b"BASE": b"\xff\xfe", b"N\xe9": b"\x80\n=x"}
    token = rig.launch("/bin/sh", "-c", 'printf %s "$1"', "sh", b"\xff\n\xc3 ")
    assert rig.exit(token).value == 0
    assert rig.output(token) == b"\xff\n\xc3 "


def test_a_variable_without_a_name_does_not_keep_others_from_starting(rig: Rig) -> None:
    rig.wire.send(b"base", b"=C:=weird", b"A=1")
    assert _environment(rig, rig.launch(_ENV, "-0")) == {b"A": b"1"}


def test_argv0_may_differ_from_the_program(rig: Rig) -> None:
    token = rig.launch("/bin/sh", "-c", "tr '\\0' '\\n' </proc/$$/cmdline | head -1", argv0="-other name")
    assert rig.exit(token).value == 0
    assert rig.output(token) == b"-other name\n"


def test_arguments_reach_the_program_without_a_shell_in_between(rig: Rig) -> None:
    token = rig.launch("/usr/bin/printf", "%s|", "$HOME `id`", "*", "", "a b", "'\"")
    rig.exit(token)
    assert rig.output(token) == b"$HOME `id`|*||a b|'\"|"


def test_the_program_runs_in_its_cwd_and_the_next_one_does_not(rig: Rig, tmp_path: Path) -> None:
    directory = tmp_path / os.fsdecode(b"d\xff \n")
    directory.mkdir()
    odd = os.fsencode(directory)
    first, second = rig.launch("/bin/pwd", "-P", cwd=odd), rig.launch("/bin/pwd", "-P")
    rig.exit(first)
    rig.exit(second)
    assert (rig.output(first), rig.output(second)) == (odd + b"\n", b"/\n")


def test_a_failed_launch_leaves_the_supervisor_where_it_was(rig: Rig, tmp_path: Path) -> None:
    rig.exit(rig.launch("./missing", cwd=tmp_path))
    token = rig.launch("/bin/pwd", "-P")
    rig.exit(token)
    assert rig.output(token) == b"/\n"
    assert Path(f"/proc/{rig.pid}/cwd").readlink() == Path("/")
