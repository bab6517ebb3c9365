"""A spawner that starts nothing: it plays scripts, and records what it was asked for."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import signal
from collections.abc import Mapping

from ray_launcher import ExitReport, LaunchOptions, ProcSpawner


class _Runs(enum.Enum):
    RUNS = "runs until it is ended"


#: The script of a proc that runs until terminate, kill or `FakeSpawner.finish`.
RUNS = _Runs.RUNS


@dataclasses.dataclass(frozen=True)
class Call:
    """One call that a `FakeSpawner` received."""

    verb: str
    """ "launch", "terminate" or "kill"."""
    proc_id: str
    opts: LaunchOptions | None = None
    """Of a launch."""
    timeout_secs: float | None = None
    """Of a terminate."""


class FakeSpawner(ProcSpawner):
    """Plays scripts instead of starting procs, and records every call.

    scripts: {proc_id: what its launch does}; default: what those without a script do. An exception is raised, `RUNS`
    runs until terminate (Signaled 15 at once) or kill (Signaled 9), and anything else is returned: an `ExitReport`,
    or junk. A launch of an id that runs is `Failed`, as with any spawner.
    """

    def __init__(self, scripts: Mapping[str, object] | None = None, default: object = RUNS) -> None:
        self._scripts = dict(scripts or {})
        self._default = default
        self._running: set[str] = set()
        self._ends: dict[str, asyncio.Future[object]] = {}
        self._calls: list[Call] = []

    async def launch(self, proc_id: str, opts: LaunchOptions) -> ExitReport:
        """See `ProcSpawner.launch`."""
        self._calls.append(Call("launch", proc_id, opts=opts))
        if proc_id in self._running:
            return ExitReport(failed_reason=f"proc {proc_id!r} is already running")
        script = self._scripts.get(proc_id, self._default)
        if script is RUNS:
            script = await self._run(proc_id)
        if isinstance(script, BaseException):
            raise script
        return script  # type: ignore[return-value]  # junk is what it is for

    async def terminate(self, proc_id: str, timeout_secs: float) -> None:
        """See `ProcSpawner.terminate`."""
        self._calls.append(Call("terminate", proc_id, timeout_secs=timeout_secs))
        if proc_id in self._running:
            await self.finish(proc_id, ExitReport(signal=signal.SIGTERM))

    async def kill(self, proc_id: str) -> None:
        """See `ProcSpawner.kill`."""
        self._calls.append(Call("kill", proc_id))
        if proc_id in self._running:
            await self.finish(proc_id, ExitReport(signal=signal.SIGKILL))

    async def finish(self, proc_id: str, outcome: object) -> None:
        """End a proc that runs, or the next of this id as soon as it does: `outcome` is returned or raised."""
        end = self._end(proc_id)
        if not end.done():
            end.set_result(outcome)

    async def calls(self) -> list[Call]:
        """Every call so far, in order: `ray.get(spawner.calls.remote())`."""
        return list(self._calls)

    async def _run(self, proc_id: str) -> object:
        self._running.add(proc_id)
        try:
            return await self._end(proc_id)
        finally:
            self._running.remove(proc_id)
            del self._ends[proc_id]

    def _end(self, proc_id: str) -> asyncio.Future[object]:
        return self._ends.setdefault(proc_id, asyncio.get_running_loop().create_future())
