"""The launches of a detached session that have not ended, kept in Ray's own store.

Any launcher of another session has its own ledger, and sends again what a spawner that was killed has not answered.
Here nobody need be left who would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from ray_launcher.cluster.registry import Registry
from ray_launcher.desk import LaunchKey, Message


class Docket:
    """Of one session. again: there may be launches that an earlier spawner was asked for."""

    def __init__(self, registry: Registry, again: bool) -> None:
        self._registry = registry
        self._found = registry.launches() if again else {}
        self._kept = set(self._found)

    def found(self) -> dict[str, list[Message]]:
        """What an earlier spawner was asked for, by launcher, in order."""
        found: dict[str, list[Message]] = {}
        for (launcher, number), payload in sorted(self._found.items()):
            found.setdefault(launcher, []).append(Message(number, "launch", payload, again=True))
        return found

    async def keep(self, launcher: str, messages: Sequence[Message]) -> None:
        """Returns when a later spawner would know of the launches among these."""
        new = {
            (launcher, message.number): message.payload
            for message in messages
            if message.kind == "launch" and (launcher, message.number) not in self._kept
        }
        if new:
            await asyncio.get_running_loop().run_in_executor(None, self._save, new)
            self._kept |= new.keys()

    async def drop(self, keys: Iterable[LaunchKey]) -> None:
        """These have ended, and a later spawner need not know: returns when it would not."""
        gone = self._kept.intersection(keys)
        self._kept -= gone
        if gone:
            await asyncio.get_running_loop().run_in_executor(None, self._forget, gone)

    def _save(self, launches: dict[LaunchKey, bytes]) -> None:
        for key, payload in launches.items():
            self._registry.save_launch(key, payload)

    def _forget(self, keys: Iterable[LaunchKey]) -> None:
        for key in keys:
            self._registry.drop_launch(key)
