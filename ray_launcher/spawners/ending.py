"""How a container of a spawner is asked to end."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from ray_launcher import ProcLauncherError, RayProcLauncher

#: Seconds from a SIGKILL for what is in a container until its engine is killed, too.
_ENGINE_GRACE = 20.0


class Container:
    """One launch as it is asked to end. Signals go to its shim's stdin: an engine must not die of them."""

    def __init__(
        self,
        proc_id: str,
        launcher: RayProcLauncher,
        in_thread: Callable[..., asyncio.Future[Any]],
        do: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
    ) -> None:
        self.proc_id = proc_id
        self.ending = asyncio.Event()
        #: It waits for no resources.
        self.placed = True
        self._launcher, self._in_thread, self._do = launcher, in_thread, do
        self._over = asyncio.Event()

    def terminate(self, timeout: float) -> None:
        """TERM for all that is in it, KILL `timeout` seconds later."""
        self._ask(signal.SIGTERM)
        if not math.isinf(timeout):
            self._do(self._unless_over(timeout, self.kill))

    def kill(self) -> None:
        """KILL for all that is in it; the engine has time to notice."""
        self._ask(signal.SIGKILL)
        self._do(self._unless_over(_ENGINE_GRACE, lambda: self._launcher.kill(self.proc_id)))

    def over(self) -> None:
        """It has ended, or nobody is interested any more."""
        self._over.set()

    async def _unless_over(self, seconds: float, call: Callable[[], None]) -> None:
        try:
            await asyncio.wait_for(self._over.wait(), seconds)
        except asyncio.TimeoutError:
            call()

    def _ask(self, signum: signal.Signals) -> None:
        self.ending.set()
        self._do(self._send(signum))

    async def _send(self, signum: signal.Signals) -> None:
        await self._in_thread(self._write, signum)

    def _write(self, signum: signal.Signals) -> None:
        try:
            if not self.placed and self._launcher.info(self.proc_id).state == "PENDING":
                self._launcher.kill(self.proc_id)
            else:
                self._launcher.stdin(self.proc_id).write(bytes([signum]))
        except (BrokenPipeError, ProcLauncherError):
            pass  # it has ended
