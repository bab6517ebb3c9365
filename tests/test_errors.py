"""The error tree, and how exceptions are put in words."""

from __future__ import annotations

import pickle

import cloudpickle
import pytest

from ray_launcher import errors
from ray_launcher.errors import ProcLauncherError, describe_exception

ALL = [
    errors.ProcLauncherError,
    errors.LaunchError,
    errors.TerminateError,
    errors.KillError,
    errors.DecodeError,
    errors.UnknownProcError,
]


class Mute(Exception):
    """An exception with no text that raises nothing."""

    def __str__(self) -> str:
        raise ValueError("no str")

    def __repr__(self) -> str:
        raise SystemExit(1)


class OnlyRepr(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    def __repr__(self) -> str:
        return "OnlyRepr()"


class NotText(Exception):
    def __str__(self) -> str:
        return 42  # type: ignore[return-value]  # noqa: PLE0307 - the wrong thing on purpose

    def __repr__(self) -> str:
        return "NotText()"


@pytest.mark.parametrize("error_type", ALL)
def test_every_error_is_a_proc_launcher_error(error_type: type[ProcLauncherError]) -> None:
    assert issubclass(error_type, ProcLauncherError)


@pytest.mark.parametrize("error_type", ALL[1:])
def test_no_error_is_a_special_case_of_another(error_type: type[ProcLauncherError]) -> None:
    assert error_type.__bases__ == (ProcLauncherError,)


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
@pytest.mark.parametrize("error_type", ALL)
def test_errors_survive_pickling_with_type_and_text(error_type: type[ProcLauncherError], pickler: object) -> None:
    copy = pickle.loads(pickler.dumps(error_type("the text")))  # type: ignore[attr-defined]
    assert (type(copy), str(copy)) == (error_type, "the text")


@pytest.mark.parametrize(
    "error,text",
    [
        (ValueError("boom"), "boom"),
        (ValueError(), ""),
        (KeyError("k"), "'k'"),
        (SystemExit(3), "3"),
        (OnlyRepr(), "OnlyRepr()"),
        (NotText(), "NotText()"),
        (Mute(), "<error formatting exception>"),
    ],
)
def test_an_exception_is_described_by_str_else_repr_else_placeholder(error: BaseException, text: str) -> None:
    assert describe_exception(error) == text


def test_lone_surrogates_in_a_description_are_escaped_so_that_it_can_be_encoded() -> None:
    assert describe_exception(ValueError("a\udcffb\ud800")) == r"a\udcffb\ud800"


def test_a_description_is_an_exact_str_even_if_str_returns_a_subclass() -> None:
    class Text(str):
        __slots__ = ()

        def encode(self, *args: object, **kwargs: object) -> bytes:
            raise RuntimeError("overridden")

    class Error(Exception):
        def __str__(self) -> str:
            return Text("boom")

    assert type(describe_exception(Error())) is str
    assert describe_exception(Error()) == "boom"
