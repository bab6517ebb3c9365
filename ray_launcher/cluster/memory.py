"""What a session remembers: the procs that have ended, and, if it is detached, the launches that have not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from ray_launcher.cluster.docket import Docket
from ray_launcher.cluster.history import History, Past
from ray_launcher.cluster.registry import Registry
from ray_launcher.cluster.roster import Proc
from ray_launcher.cluster.wire import SessionInfo
from ray_launcher.desk import LaunchKey, Message


class Memory:
    """Of one spawner. again: an earlier one may have left some.

    on_over(key): called when the report of a detached session's launch need not be kept elsewhere any longer.
    remove_logs(pasts): awaited for those that nobody is told of any more.
    """

    def __init__(
        self,
        registry: Registry,
        session: SessionInfo,
        again: bool,
        on_over: Callable[[LaunchKey], None],
        remove_logs: Callable[[Sequence[Past]], Awaitable[None]],
    ) -> None:
        self._docket = Docket(registry, again) if session.detached else None
        self.history = History(registry, session.history, self._on_kept, self._on_forgotten, again)
        self._on_over, self._remove_logs = on_over, remove_logs
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._do(self._forget(self.history.to_forget()))

    @property
    def is_complete(self) -> bool:
        """Whether it knows every launch of the session, whoever asked for it."""
        return self._docket is not None

    def found(self) -> dict[str, list[Message]]:
        """See `Docket.found`."""
        return {} if self._docket is None else self._docket.found()

    def over(self) -> list[LaunchKey]:
        """The launches of a detached session that an earlier spawner has seen through."""
        found = {(launcher, message.number) for launcher, messages in self.found().items() for message in messages}
        return [past.key for past in self.history.pasts() if past.key not in found] if self.is_complete else []

    async def keep(self, launcher: str, messages: Sequence[Message]) -> None:
        """Returns when a later spawner would know of the launches among these, in a detached session."""
        if self._docket is not None:
            await self._docket.keep(launcher, messages)

    async def drop(self, key: LaunchKey) -> None:
        """That launch came to nothing."""
        if self._docket is not None:
            await self._docket.drop([key])

    def add(self, proc: Proc) -> None:
        """The last attempt of its launch; once it has ended, that is remembered."""
        if proc.end.done():
            self._add(proc)
        else:
            proc.end.add_done_callback(lambda _: self._add(proc))

    async def may_be_told(self) -> None:
        """Return when a later spawner would know of the ends until now: in a detached session before they are told.

        Its agents may forget them, and no launcher need be left who knows.
        """
        if self._docket is not None:
            await self.history.kept()

    async def stop(self, patience: float) -> None:
        """Remove no more logs; return when none are being removed, or after so many seconds.

        Ray would report calls that are pending when their agent is killed.
        """
        self._stopped = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)

    async def close(self) -> None:
        """Nothing more is kept; return when nothing is being written."""
        await self.history.close()

    def _add(self, proc: Proc) -> None:
        if proc.end.cancelled():
            self._do(self.drop(proc.key))
        elif known := self.history.by_key(proc.key):  # told again
            self._do(self._on_kept([known]))
        else:
            report = proc.end.result()
            self.history.add(Past(proc.key, proc.token, proc.info(), report, proc.ready.is_set(), proc.forget))

    async def _on_kept(self, pasts: Sequence[Past]) -> None:
        if self._docket is not None:
            for past in pasts:
                self._on_over(past.key)
            await self._docket.drop([past.key for past in pasts])
        if any(past.forget for past in pasts):
            self._do(self._forget([past for past in pasts if past.forget]))

    def _on_forgotten(self, pasts: Sequence[Past]) -> None:
        if pasts and not self._stopped:
            self._do(self._remove(pasts))

    async def _remove(self, pasts: Sequence[Past]) -> None:
        await self._remove_logs(pasts)

    async def _forget(self, pasts: Sequence[Past]) -> None:
        for past in pasts:
            await self.history.remove(past)
        self._on_forgotten(pasts)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
