from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_launcher.options import LaunchOptions


def run(opts: LaunchOptions) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **opts.env}
    return subprocess.run([opts.program, *opts.args], env=env, capture_output=True, text=True, timeout=60, check=False)


def write(path: str, *, text: str) -> None:
    Path(path).write_text(text)


def test_the_callable_gets_its_arguments(tmp_path: Path) -> None:
    done = run(LaunchOptions.from_callable(write, str(tmp_path / "out"), text="hello"))
    assert (done.returncode, (tmp_path / "out").read_text()) == (0, "hello"), done.stderr


def test_a_closure_travels_by_value() -> None:
    secret = "walnut"
    done = run(LaunchOptions.from_callable(lambda: sys.stdout.write(secret)))
    assert done.stdout == "walnut", done.stderr


def test_an_exception_ends_with_code_1_and_its_traceback() -> None:
    def fail() -> None:
        raise LookupError("no such luck")

    done = run(LaunchOptions.from_callable(fail))
    assert done.returncode == 1
    assert done.stderr.endswith("LookupError: no such luck\n")


def test_sys_exit_decides_the_exit_code() -> None:
    assert run(LaunchOptions.from_callable(sys.exit, 7)).returncode == 7


def test_half_a_megabyte_of_arguments_arrives() -> None:
    data = os.urandom(500_000)
    done = run(LaunchOptions.from_callable(lambda given: sys.exit(0 if len(given) == 500_000 else 1), data))
    assert done.returncode == 0, done.stderr


def test_the_callable_does_not_see_the_variables_it_came_in() -> None:
    done = run(LaunchOptions.from_callable(lambda: sys.exit(any("CALLABLE" in name for name in os.environ))))
    assert done.returncode == 0, done.stderr


def test_other_fields_are_set_with_replace() -> None:
    opts = dataclasses.replace(LaunchOptions.from_callable(os.getpid), tail_lines=3)
    assert run(opts).returncode == 0


def test_arguments_do_not_show_in_the_repr() -> None:
    assert "walnut" not in repr(LaunchOptions.from_callable(print, "walnut"))


@pytest.mark.parametrize(
    "given, error, words",
    [
        (lambda: LaunchOptions.from_callable("print"), TypeError, "fn must be callable, not str"),  # type: ignore[arg-type]
        (lambda: LaunchOptions.from_callable(print, threading.Lock()), TypeError, "cannot be pickled"),
        (lambda: LaunchOptions.from_callable(len, bytes(2_000_000)), ValueError, "pass large data in a file"),
    ],
)
def test_what_cannot_travel_is_refused_with_the_remedy(
    given: Callable[[], LaunchOptions], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        given()
