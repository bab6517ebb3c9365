"""`Gang`: procs that are placed all or nothing, with ranks, and that fail together."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial

from ray_launcher.errors import ProcLauncherError
from ray_launcher.exits import Failed, ProcExitResult
from ray_launcher.launcher import LaunchResult
from ray_launcher.options import check_timeout
from ray_launcher.ranks import NOT_NEEDED


@dataclasses.dataclass(frozen=True)
class GangResult:
    """How a gang ended.

    results: by rank, of those that were needed in the end.  cause: the rank that failed first, by time; None if none
    did.
    """

    results: Sequence[ProcExitResult]
    cause: int | None = None

    @property
    def ok(self) -> bool:
        """Whether every rank exited with code 0."""
        return all(result.ok for result in self.results)

    def __str__(self) -> str:
        if self.ok:
            return f"all {len(self.results)} ranks exited with code 0"
        failed = sum(not result.ok for result in self.results)
        if self.cause is None:
            return f"{failed} of {len(self.results)} ranks failed"
        return f"rank {self.cause} of {len(self.results)} {self.results[self.cause]}"


def is_spare(result: ProcExitResult) -> bool:
    """Whether a rank of a gang of a flexible size was not needed in the end."""
    return isinstance(result.kind, Failed) and result.kind.reason.startswith(NOT_NEEDED)


class Gang:
    """A gang that was launched. Each rank has an exit port of its own; `wait` is for all of them.

    ranks: by global rank; their proc_ids are "gang_id/rank".
    """

    def __init__(
        self,
        gang_id: str,
        ranks: Sequence[LaunchResult],
        request: Callable[[float | None], None],
        find_cause: Callable[[], int | None],
    ) -> None:
        """For launchers. request(timeout): terminate all, or kill them (None).  find_cause: once all have ended."""
        self.gang_id, self.ranks = gang_id, list(ranks)
        self._request, self._find_cause = request, find_cause
        self._heard: list[int] = []  # the ranks that failed, as we heard of it
        for rank, launched in enumerate(ranks):
            launched.exit_port.add_done_callback(partial(self._hear, rank))

    def wait(self, timeout: float | None = None) -> GangResult:
        """Block until every rank has ended, at most `timeout` seconds. Raises TimeoutError; the gang goes on then."""
        deadline = None if timeout is None else time.monotonic() + timeout
        results = []
        for rank in self.ranks:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                results.append(rank.exit_port.wait(left))
            except TimeoutError:
                raise TimeoutError(f"gang {self.gang_id!r} had not ended after {timeout} s") from None
        needed = [result for result in results if not is_spare(result)]
        return GangResult(needed, self._cause(needed))

    def terminate(self, timeout: float) -> None:
        """Request SIGTERM for every rank, and SIGKILL `timeout` seconds later. See `ProcLauncher.terminate`."""
        self._request(check_timeout("timeout", timeout))

    def kill(self) -> None:
        """Request SIGKILL for every rank. See `ProcLauncher.kill`."""
        self._request(None)

    def __repr__(self) -> str:
        return f"Gang({self.gang_id!r}, {len(self.ranks)} ranks)"

    def _cause(self, results: Sequence[ProcExitResult]) -> int | None:
        failed = [rank for rank, result in enumerate(results) if not result.ok]
        if len(failed) > 1:
            with contextlib.suppress(ProcLauncherError):  # the session is over
                cause = self._find_cause()
                if cause is not None:
                    return cause
        return next(iter([*self._heard, *failed]), None)

    def _hear(self, rank: int, result: ProcExitResult) -> None:
        if not result.ok and not is_spare(result):
            self._heard.append(rank)
