"""Which outcomes their launchers do not have yet: what is known of those must not be forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ray_launcher.desk import LaunchKey


class Owed:
    """Of one spawner.

    caught_up: of all that earlier spawners were asked for, the ends of what cannot be found any more are known to those
    who asked. Until then, a spawner that comes next must hear what this one has heard.
    """

    def __init__(self) -> None:
        self.caught_up = asyncio.Event()
        self._waits: list[tuple[set[LaunchKey], asyncio.Future[None]]] = []

    async def until_settled(self, keys: Iterable[LaunchKey]) -> None:
        """Return when the launchers have the outcomes of these launches, and this spawner has caught up."""
        owed = set(keys)
        if owed:
            wait = owed, asyncio.get_running_loop().create_future()
            self._waits.append(wait)
            await wait[1]
        await self.caught_up.wait()

    def settled(self, launcher: str, numbers: Iterable[int]) -> None:
        """A launcher has these outcomes."""
        if not self._waits:
            return
        keys = {(launcher, number) for number in numbers}
        for owed, settled in self._waits:
            owed.difference_update(keys)
            if not owed:
                settled.set_result(None)
        self._waits = [wait for wait in self._waits if wait[0]]
