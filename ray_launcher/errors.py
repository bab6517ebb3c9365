"""The errors that this package raises, and how any exception is put in words.

    Exception
    └── ProcLauncherError       anything below; catch this one
        ├── LaunchError         a launch could not be requested, or the launcher is closed
        ├── TerminateError      a terminate could not be requested
        ├── KillError           a kill could not be requested
        ├── DecodeError         what a spawner returned is not an exit report
        ├── LogsLostError       what a proc wrote cannot be read: its node is lost
        ├── NotReadyError       a proc has ended before it was ready
        ├── CallError           a call has ended without an answer that can come here
        ├── UnknownProcError    no proc of this id is known here
        ├── UnknownSessionError no session of this name is there
        └── UnknownSpawnerError no installed package offers a spawner of this name

How a proc ends is never an exception: it is a ``ProcExitResult`` (see ``exits``). A wrong argument is the caller's
mistake and raises ``TypeError`` or ``ValueError`` instead.

Every error carries one text, so that it crosses processes by pickle as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_launcher.exits import ProcExitResult

__all__ = [
    "CallError",
    "DecodeError",
    "KillError",
    "LaunchError",
    "LogsLostError",
    "ProcLauncherError",
    "TerminateError",
    "UnknownProcError",
    "UnknownSessionError",
    "UnknownSpawnerError",
    "describe_exception",
]


class ProcLauncherError(Exception):
    """Base of all errors of this package."""


class LaunchError(ProcLauncherError):
    """A launch could not be requested: the request cannot be pickled, or the launcher is closed."""


class TerminateError(ProcLauncherError):
    """A terminate could not be requested: it cannot be serialised, or the spawner is known to be gone."""


class KillError(ProcLauncherError):
    """A kill could not be requested: it cannot be serialised, or the spawner is known to be gone."""


class DecodeError(ProcLauncherError):
    """What a spawner returned is not an exit report; the text names the first field that is wrong."""


class LogsLostError(ProcLauncherError):
    """What a proc wrote, or the rest of it, cannot be read: its node, which the text names, is lost."""


class NotReadyError(ProcLauncherError):
    """A proc has ended before it was ready."""


class CallError(ProcLauncherError):
    """A call (see `RayProcLauncher.call`) has ended without an answer, or with one that cannot come here.

    result: how its proc ended; None where that is not known.
    """

    result: ProcExitResult | None = None
    raised: bytes | None = None  # of the callable's own exception, see `callables`


class UnknownProcError(ProcLauncherError):
    """No proc of this id is running or in the history of finished ones."""


class UnknownSessionError(ProcLauncherError):
    """The cluster has no session of this name."""


class UnknownSpawnerError(ProcLauncherError):
    """No installed package offers a spawner of this name; the text lists those that there are."""


def describe_exception(error: BaseException) -> str:
    r"""The text of an exception, whatever the exception does.

    ``str(error)``, else ``repr(error)`` if that raises, else ``"<error formatting exception>"``. Never raises, and the
    text can always be encoded as UTF-8: lone surrogates come back as ``\udcff``.

    Source: ``pyany_to_error_string`` of Monarch's ``proc_launcher.rs``.
    """
    for form in (str, repr):
        try:
            return _encodable(form(error))
        except BaseException:  # noqa: BLE001, S112 - __str__ may raise anything, SystemExit included
            continue
    return "<error formatting exception>"


def _encodable(text: str) -> str:
    # str.encode, not text.encode: __str__ may return a subclass of str that overrides it
    return str.encode(text, "utf-8", "backslashreplace").decode("utf-8")
