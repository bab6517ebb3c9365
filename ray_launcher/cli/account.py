"""What came of the procs of a run: what is said of it in the end, and the exit code."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from ray_launcher import ExitPort, Failed, ProcExitResult, Signaled, is_spare
from ray_launcher.cli import outcome
from ray_launcher.cli.jobs import Job
from ray_launcher.cli.output import Screen

#: Seconds for the spawner to tell which failure came first.
_FETCH = 10.0
_Failures = Sequence[tuple[int, ProcExitResult]]
_T = TypeVar("_T")


class Account:
    """Used by one thread.

    failures: rank and result, as they came.  asked: the signal on which the procs are ended, if one has come.
    killing: without waiting for the grace.
    """

    def __init__(self, job: Job, screen: Screen, grace: float) -> None:
        self._job, self._screen, self._grace = job, screen, grace
        self._ports: Sequence[ExitPort] = ()  # by rank
        self.failures: list[tuple[int, ProcExitResult]] = []
        self._limited: list[tuple[int, ProcExitResult]] = []  # those that ended well, but at their time limit
        self._unasked = 0  # failures before we were asked to end the procs
        self._spare = 0  # ranks that were not needed
        self.asked: int | None = None
        self.killing = False

    def begin(self, ports: Sequence[ExitPort]) -> None:
        """These are launched."""
        self._ports = ports

    def add(self, rank: int, result: ProcExitResult) -> bool:
        """Note an end; whether it is the first failure."""
        if is_spare(result):
            self._spare += 1
        elif not result.ok:
            self.failures.append((rank, result))
            return len(self.failures) == 1
        elif outcome.limit_words(result):
            self._limited.append((rank, result))
        return False

    def ask(self, number: int) -> None:
        """From here on failures are what was asked for."""
        self.asked, self._unasked = number, len(self.failures)

    def tell_of_first(self, running: int) -> None:
        """The first failure, while so many others run."""
        self._screen.say(outcome.notice(*self.failures[0], running, ended=self._job.fail_fast))

    def conclude(self) -> int:
        """Say what there is to say when all have ended; the exit code."""
        if not self.failures:
            text = outcome.summary_of_limits(self._limited, len(self._ports))
            if text is not None:
                self._screen.say(text)
            return 0
        failures: _Failures = self.failures
        if self.asked is None or self._unasked:
            failures, address = self._blamed(failures[: self._unasked or None])
            self._summarise(failures, address)
        else:
            if isinstance(failures[0][1].kind, Failed):  # it had not been started yet
                return outcome.BY_SIGNAL + self.asked
            self._tell_who_was_killed()
        rank, first = failures[0]
        return outcome.exit_code(first, self._ports[rank])

    def _blamed(self, failures: _Failures) -> tuple[_Failures, str | None]:
        """The same with the one first that is to blame, alone where it ended the others; and its node's address."""
        blame = _within(_FETCH, self._job.blame)
        results = dict(self.failures)
        rank, address = blame or (failures[0][0], None)
        if rank not in results:
            return failures, None
        others = [] if self._job.fail_fast else [each for each in failures if each[0] != rank]
        return [(rank, results[rank]), *others], address

    def _summarise(self, failures: _Failures, address: str | None) -> None:
        if len(self._ports) == 1:
            text = outcome.summary_of_one(failures[0][1])
        else:
            text = outcome.summary_of_many(failures, len(self._ports) - self._spare, address)
        if text is not None:
            self._screen.say(text)

    def _tell_who_was_killed(self) -> None:
        killed = [rank for rank, result in self.failures if result.kind == Signaled(signal.SIGKILL)]
        if killed and not self.killing:
            self._screen.say(f"killed {procs(len(killed))} that had not ended after {self._grace:g} s")


def procs(count: int) -> str:
    """So many, in words."""
    return "1 proc" if count == 1 else f"{count} procs"


def _within(seconds: float, ask: Callable[[], _T]) -> _T | None:
    """The answer of something that blocks, unless it takes too long or fails."""
    answers: list[_T] = []

    def asking() -> None:
        with contextlib.suppress(Exception):
            answers.append(ask())

    thread = threading.Thread(target=asking, name="asking", daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None
