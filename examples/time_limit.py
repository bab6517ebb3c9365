"""A spawner around another one: it adds a time limit, and leaves starting and stopping to the spawner inside."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

import ray
from custom_spawner import LocalSpawner

from ray_launcher import ActorProcLauncher, ExitReport, LaunchOptions, ProcSpawner, start_spawner


class TimeLimitSpawner(ProcSpawner):
    """Runs procs through `inner`; one that takes longer than `limit` seconds gets SIGTERM, and SIGKILL 5 s later."""

    def __init__(self, inner: type[ProcSpawner], limit: float) -> None:
        self._inner = inner()
        self._limit = limit

    async def launch(self, proc_id: str, opts: LaunchOptions) -> ExitReport:
        """The inner spawner's report; how the proc ended stays true, the reason is added to its last words."""
        limit = asyncio.create_task(self._end_late(proc_id))
        started = asyncio.get_running_loop().time()
        try:
            report = await self._inner.launch(proc_id, opts)
        finally:
            limit.cancel()
        if asyncio.get_running_loop().time() - started < self._limit:
            return report
        return dataclasses.replace(
            report, stderr_tail=[*report.stderr_tail, f"time limit of {self._limit:g} s reached"]
        )

    async def terminate(self, proc_id: str, timeout_secs: float) -> None:
        """As the inner spawner does it."""
        await self._inner.terminate(proc_id, timeout_secs)

    async def kill(self, proc_id: str) -> None:
        """As the inner spawner does it."""
        await self._inner.kill(proc_id)

    async def _end_late(self, proc_id: str) -> None:
        await asyncio.sleep(self._limit)
        await self._inner.terminate(proc_id, 5)


if __name__ == "__main__":
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    launcher = ActorProcLauncher(start_spawner(TimeLimitSpawner, LocalSpawner, limit=0.5))
    for program in ("true", "yes"):
        result = launcher.launch(program, LaunchOptions(program=program)).exit_port.wait()
        print(f"{program}: {result} {result.stderr_tail}")
