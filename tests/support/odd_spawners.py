"""Spawners that misbehave, each in its way, for tests of what the launcher makes of it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, TaskCancelledError

from ray_launcher import ExitReport, LaunchOptions, ProcSpawner


class OddSpawner(ProcSpawner):
    """The program names what a launch does: an entry of `ODDITIES`, or a method. Does not call `super().__init__()`."""

    def __init__(self, fail: str | None = None) -> None:
        if fail is not None:
            raise ValueError(fail)
        self.begun: list[str] = []
        self.cancelled: list[str] = []

    async def launch(self, proc_id: str, opts: LaunchOptions) -> ExitReport:
        self.begun.append(proc_id)
        if opts.program in ODDITIES:
            return ODDITIES[opts.program]()  # type: ignore[return-value]
        await getattr(self, opts.program)(proc_id, *opts.args)
        return ExitReport(exit_code=0)

    async def terminate(self, proc_id: str, timeout_secs: float) -> None:
        raise SystemExit("terminate does not work here")

    async def kill(self, proc_id: str) -> None:
        raise ValueError("kill does not work here")

    async def seen(self) -> tuple[list[str], list[str]]:
        """The ids of launches that began, and of those that were cancelled."""
        return self.begun, self.cancelled

    async def at_once(self, proc_id: str) -> None:
        pass

    async def hang(self, proc_id: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.append(proc_id)

    async def block(self, proc_id: str, seconds: str) -> None:
        time.sleep(float(seconds))  # noqa: ASYNC251  # that is the oddity: nothing else runs meanwhile

    async def exit_actor(self, proc_id: str) -> None:
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]

    async def die(self, proc_id: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class TwoArgumentsError(Exception):
    """Pickles, but does not come back: its arguments are not those of its constructor."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"code {code}: {reason}")


class LockedError(Exception):
    """Does not pickle."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class WordlessError(Exception):
    """Cannot be put in words."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class HomeboundError(Exception):
    """Can be unpickled in the process that made it, and nowhere else."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return only_in, (os.getpid(),)


class HomeboundReport(SimpleNamespace):
    """The same, as a report."""

    __reduce__ = HomeboundError.__reduce__


def only_in(pid: int) -> None:
    """Half of a pickle."""
    if os.getpid() != pid:
        raise RuntimeError("not at home here")


def _raising(error: BaseException) -> Callable[[], object]:
    def oddity() -> object:
        raise error

    return oddity


def _report(**changes: object) -> SimpleNamespace:
    return SimpleNamespace(**{**dataclasses.asdict(ExitReport(exit_code=0)), **changes})


ODDITIES: dict[str, Callable[[], object]] = {
    "raise": _raising(ValueError("bad image")),
    "raise without text": _raising(ValueError()),
    "raise wordless": _raising(WordlessError()),
    "raise two arguments": _raising(TwoArgumentsError(3, "no disk")),
    "raise a lock": _raising(LockedError("locked up")),
    "raise homebound": _raising(HomeboundError("far away")),
    "raise SystemExit": _raising(SystemExit(3)),
    "raise KeyboardInterrupt": _raising(KeyboardInterrupt()),
    "raise CancelledError": _raising(asyncio.CancelledError()),
    "raise a Ray error": _raising(GetTimeoutError("of its own")),
    "raise another's cancellation": _raising(TaskCancelledError(error_message="of a task of its own")),
    "raise a surrogate": _raising(ValueError("caf\udce9")),
    "raise StopIteration": _raising(StopIteration("over")),
    "return None": lambda: None,
    "return text": lambda: "exited with code 0",
    "return a dict": lambda: {"exit_code": 0},
    "return a text code": lambda: _report(exit_code="0"),
    "return a lock": lambda: _report(lock=threading.Lock()),
    "return homebound": lambda: HomeboundReport(exit_code=0),
    "return an exception": lambda: ValueError("as a value"),
    "return look-alike": lambda: _report(exit_code=np.int64(5), stderr_tail=("last",)),
}
