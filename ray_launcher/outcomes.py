"""Outcomes: how a launch ended, in bytes that travel to its launcher, whatever the spawner returned or raised."""

from __future__ import annotations

import asyncio
import pickle
import traceback

import cloudpickle
from ray.exceptions import TaskCancelledError

from ray_launcher.errors import DecodeError, describe_exception
from ray_launcher.exits import ExitReport, decode_exit

#: What an outcome starts with. A pickled report follows, or a pickled (reason in words, pickled exception): a launcher
#: may not have what it takes to unpickle the exception.
REPORTED, RAISED = b"r", b"e"


class SpawnerRaisedError(Exception):
    """Stands in for an exception of a spawner that cannot be pickled; carries its text."""


class JunkReportError(DecodeError):
    """Stands in for a spawner's return value that cannot be pickled."""


def reported(report: object) -> bytes:
    """The outcome of a launch that returned this. Raises `JunkReportError` where it cannot travel."""
    return REPORTED + _pickled(report)


def raised(error: BaseException) -> bytes:
    """The outcome of a launch that raised this."""
    cancelled = isinstance(error, asyncio.CancelledError)
    portable = error if cancelled else _portable_exception(error)
    return RAISED + pickle.dumps((reason_of(portable), cloudpickle.dumps(portable)))


def reason_of(raised: BaseException) -> str:
    """Why a launch has failed whose coroutine raised this (contract 5)."""
    if isinstance(raised, TaskCancelledError | asyncio.CancelledError):
        return "exit port closed (the launch was cancelled)"
    if isinstance(raised, JunkReportError):
        return f"failed to decode exit result: {describe_exception(raised)}"
    return f"spawner raised: {describe_exception(raised)}"


def report_of(outcome: bytes) -> object:
    """The raw report in an outcome; raises what it says was raised."""
    value = pickle.loads(outcome[1:])  # noqa: S301  # made by this module
    if outcome[:1] == REPORTED:
        return value
    raise pickle.loads(value[1])  # noqa: S301  # the same


def _pickled(report: object) -> bytes:
    """A report, fit to travel. Raises `JunkReportError`."""
    if type(report) is ExitReport:
        try:
            decode_exit(report)
        except DecodeError:
            pass  # the launcher decodes it again, and says so
        else:
            return pickle.dumps(report, pickle.HIGHEST_PROTOCOL)
    try:
        pickled: bytes = cloudpickle.dumps(report)
    except Exception as error:  # noqa: BLE001  # pickling runs foreign code
        text = f"the spawner returned a {type(report).__qualname__} that cannot be pickled: {describe_exception(error)}"
        raise JunkReportError(text) from None
    return pickled


def _portable_exception(error: BaseException) -> Exception:
    """The exception itself if it survives the journey, as not every one does; else a stand-in with its text."""
    if isinstance(error, Exception) and not isinstance(error, TaskCancelledError) and _travels(error):
        return error  # a TaskCancelledError is that of a task of the spawner's, and would be taken for the launch's own
    text = describe_exception(error)
    return SpawnerRaisedError(text if text or isinstance(error, Exception) else repr(error))


def _travels(error: Exception) -> bool:
    """Whether Ray can put it in words, which must be UTF-8 (it would lose the actor otherwise), and pickle it."""
    try:
        str.encode(str(error))
        str.encode("".join(traceback.format_exception(type(error), error, error.__traceback__)))
        pickle.loads(cloudpickle.dumps(error))  # noqa: S301  # just made
    except BaseException:  # noqa: BLE001  # all of it runs foreign code
        return False
    return True
