"""How a proc ended: the report a spawner returns, and the result that a caller reads.

A spawner returns an ``ExitReport`` (flat facts), ``decode_exit`` checks it strictly and turns it into a
``ProcExitResult`` (one of ``Exited``, ``Signaled``, ``Failed``, plus the stderr tail). Called by the launcher for every
proc, and by tests of spawners. Standard library only; knows nothing of Ray.

The decoding rules are those of PyO3's extraction into ``Option<i32>``, ``bool``, ``Option<String>`` and
``Vec<String>``, as Monarch's ``proc_launcher.rs`` uses it.
"""

from __future__ import annotations

import ctypes
import enum
import operator
import signal as signals
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard, TypeVar, cast

from ray_launcher.errors import DecodeError, describe_exception

__all__ = [
    "ExitReport",
    "Exited",
    "Failed",
    "ProcExitKind",
    "ProcExitResult",
    "Signaled",
    "StdioHandling",
    "decode_exit",
]

_T = TypeVar("_T")

_UNKNOWN_CODE = -1
_FIELDS = ("exit_code", "signal", "core_dumped", "failed_reason", "stderr_tail")


class StdioHandling(enum.Enum):
    """Who takes care of a proc's stdout and stderr."""

    CAPTURED = "captured"
    """The caller gets the streams and must read them."""
    INHERITED = "inherited"
    """The proc writes to the streams of the process that started it."""
    MANAGED_BY_LAUNCHER = "managed_by_launcher"
    """The launcher or its spawner keeps them; there is nothing to read or close."""


@dataclass(frozen=True)
class ExitReport:
    """The flat facts of one exit, as a spawner returns them.

    Nothing is checked here: ``decode_exit`` checks, for this class and for any other with the same five attributes.
    ``failed_reason`` wins over ``signal``, which wins over ``exit_code``; "set" means not None.
    """

    exit_code: int | None = None
    """The leader's exit code, 32 bits; None where it is not known."""
    signal: int | None = None
    """Number of the signal that killed the leader; None if none did."""
    core_dumped: bool = False
    """The wait status has the core-dump bit. Read only together with ``signal``."""
    failed_reason: str | None = None
    """Why there is no wait status to report; None if there is one."""
    stderr_tail: Sequence[str] = ()
    """The last lines of stderr, oldest first, without line ends."""


@dataclass(frozen=True)
class Exited:
    """The leader exited by itself. ``code`` is -1 where it is unknown."""

    code: int

    def __str__(self) -> str:
        unknown = " (unknown)" if self.code == _UNKNOWN_CODE else ""
        return f"exited with code {self.code}{unknown}"


@dataclass(frozen=True)
class Signaled:
    """A signal killed the leader. ``signal`` is its number, also one that this platform does not know."""

    signal: int
    core_dumped: bool = False

    def __str__(self) -> str:
        core = " (core dumped)" if self.core_dumped else ""
        return f"killed by {_signal_name(self.signal)}{core}"


@dataclass(frozen=True)
class Failed:
    """There is no wait status: the proc never ran, or nobody is left who could tell how it ended."""

    reason: str

    def __str__(self) -> str:
        return f"failed: {self.reason or 'no reason given'}"


ProcExitKind: TypeAlias = Exited | Signaled | Failed


@dataclass(frozen=True)
class ProcExitResult:
    """The end of one proc. ``str()`` says it in words, for example ``killed by SIGSEGV (core dumped)``."""

    kind: ProcExitKind
    stderr_tail: list[str] | None = None
    """Last lines of stderr, oldest first, without line ends; None only where nothing could be decoded."""

    @property
    def ok(self) -> bool:
        """Whether the proc exited with code 0."""
        return self.kind == Exited(0)

    @property
    def returncode(self) -> int | None:
        """The end as ``subprocess.Popen.returncode`` puts it: the exit code, or minus the signal number.

        None for ``Failed``, and for ``Signaled(0)``, whose "-0" would read as success.
        """
        match self.kind:
            case Exited(code):
                return code
            case Signaled(signal):
                return -signal or None
            case Failed():
                return None

    def __str__(self) -> str:
        return str(self.kind)


def decode_exit(obj: object) -> ProcExitResult:
    """Check an exit report of any class and say what it means.

    ``obj`` needs the five attributes of ``ExitReport``. All five are looked up first, in that order; then each is read
    and converted, in that order; the first error wins.

    * ``exit_code``, ``signal``: None, or anything with ``__index__`` (bool included) within 32 bits; no float or str.
    * ``core_dumped``: ``True``, ``False`` or a numpy bool; no int.
    * ``failed_reason``: None or str.
    * ``stderr_tail``: a sequence of str (what ``PySequence_Check`` takes: list, tuple, deque, a class with
      ``__getitem__``; no generator, set or dict), and never a str itself.

    A str with a lone surrogate is refused. Values come back as exact ``int``, ``bool``, ``str`` and ``list``.

    Returns ``Failed`` if ``failed_reason`` is not None (``""`` included), else ``Signaled`` if ``signal`` is not None
    (0 included), else ``Exited``, with code -1 if ``exit_code`` is None. ``stderr_tail`` is always a list.

    Raises DecodeError, naming the attribute. Whatever the object's own code raises ends up in it, also what is not an
    ``Exception``, because an exit must be reported in every case.
    """
    for name in _FIELDS:
        _require(obj, name)
    code = _extract(obj, "exit_code", _optional_i32)
    signal = _extract(obj, "signal", _optional_i32)
    core_dumped = _extract(obj, "core_dumped", _bool)
    reason = _extract(obj, "failed_reason", _optional_str)
    tail = _extract(obj, "stderr_tail", _str_list)
    return ProcExitResult(_kind(code, signal, core_dumped, reason), tail)


def _kind(code: int | None, signal: int | None, core_dumped: bool, reason: str | None) -> ProcExitKind:
    if reason is not None:
        return Failed(reason)
    if signal is not None:
        return Signaled(signal, core_dumped)
    return Exited(_UNKNOWN_CODE if code is None else code)


def _require(obj: object, name: str) -> None:
    try:
        present = hasattr(obj, name)
    except BaseException as error:
        raise DecodeError(f"hasattr {name}: {_summary(error)}") from error
    if not present:
        raise DecodeError(
            f"ExitReport must have the attribute {name}, and this {type(obj).__qualname__!r} object has not; "
            "return a ray_launcher.ExitReport"
        )


def _extract(obj: object, name: str, convert: Callable[[object], _T]) -> _T:
    try:
        value = getattr(obj, name)
    except BaseException as error:
        raise DecodeError(f"getattr {name}: {_summary(error)}") from error
    try:
        return convert(value)
    except BaseException as error:
        raise DecodeError(f"extract {name}: {_summary(error)}") from error


def _summary(error: BaseException) -> str:
    return f"{type(error).__qualname__}: {describe_exception(error)}"


def _optional_i32(value: object) -> int | None:
    if value is None:
        return None
    number = operator.index(cast("int", value))  # an exact int, whatever a subclass says about itself
    if not -(2**31) <= number < 2**31:
        # without the value: one of more than 4,300 digits cannot be printed
        raise OverflowError("out of range for a signed 32-bit integer")
    return number


def _bool(value: object) -> bool:
    if value is True or value is False:
        return value is True
    if not _is_numpy_bool(type(value)):
        raise _not_instance(value, "bool")
    if not any("__bool__" in vars(cls) for cls in type(value).__mro__):
        raise TypeError(f"object of type {type(value)!r} does not define a '__bool__' conversion")
    return bool(value)


def _is_numpy_bool(cls: type) -> bool:
    # by name, as PyO3 does: numpy need not be installed. numpy 1 calls it bool_, numpy 2 bool
    return cls.__module__ == "numpy" and cls.__name__ in ("bool_", "bool")


def _optional_str(value: object) -> str | None:
    return None if value is None else _str(value)


def _str(value: object) -> str:
    if not _is_str(value):
        raise _not_instance(value, "str")
    str.encode(value, "utf-8")  # raises for a lone surrogate
    return str.__str__(value)


def _str_list(value: object) -> list[str]:
    if _is_str(value):
        raise TypeError("Can't extract `str` to `Vec`")
    if not _sequence_check(value):
        raise _not_instance(value, "Sequence")
    # not list(value): that asks __len__ first, and a __len__ that raises is no reason to refuse
    return [_str(item) for item in cast("Iterable[object]", value)]


# An own prototype: argtypes set on ctypes.pythonapi.PySequence_Check itself would be shared with all other users of it.
_sequence_check = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object)(("PySequence_Check", ctypes.pythonapi))


def _is_str(value: object) -> TypeGuard[str]:
    # not isinstance: it believes the __class__ of a proxy or mock
    return issubclass(type(value), str)


def _not_instance(value: object, wanted: str) -> TypeError:
    got = "'None'" if value is None else f"'{type(value).__qualname__}' object"
    return TypeError(f"{got} is not an instance of '{wanted}'")


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        pass
    if signals.SIGRTMIN < number < signals.SIGRTMAX:
        return f"SIGRTMIN+{number - signals.SIGRTMIN}"
    return f"signal {number}"
