"""How long ago an agent was last granted its lease, and what its clock shows.

For how long an agent has been silent is noted in Ray's key-value store once its renewal is overdue, and the note is
taken back before the agent is granted another lease: a spawner that is started again counts on from there. The note
tells a duration, so no two clocks need to agree; it is never more than what has passed.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from ray_launcher.cluster.registry import Registry

#: How often a lease is renewed within its time.
RENEWALS = 6
#: Seconds after the time of a renewal at which it is overdue.
_LATE = 1.0
#: Seconds between two notes, and at least between two looks.
_EVERY, _LOOK = 1.0, 0.1


class Contact:
    """With the agent `name`. lease: in seconds.  found: an earlier spawner had it, and may have left a note."""

    def __init__(self, registry: Registry, name: str, lease: float, found: bool) -> None:
        self._registry, self._name, self._lease = registry, name, lease
        self._noted = registry.silence(name) if found else 0.0
        self._granted = asyncio.get_running_loop().time() - self._noted
        self._noting = asyncio.Lock()
        self._ahead: deque[float] = deque(maxlen=20)

    @property
    def silence(self) -> float:
        """Seconds since the agent was last granted its lease, as far as this spawner knows: or longer."""
        return asyncio.get_running_loop().time() - self._granted

    def begin(self) -> None:
        """The agent has joined; it has had no lease before."""
        self._granted = asyncio.get_running_loop().time()

    async def renew(self, clock: float) -> None:
        """Returns when nothing says any more that the agent is silent. clock: its own, when it asked."""
        self._ahead.append(time.time() - clock)
        async with self._noting:
            if self._noted:
                await self._note(0.0)
            self.begin()

    def ours(self, when: float | None) -> float | None:
        """A time of the agent's node by our own clock: the quickest of the last requests tells how they differ."""
        return None if when is None else when + min(self._ahead, default=0.0)

    async def keep_noted(self) -> None:
        """Note its silence while there is any; never returns."""
        overdue = self._lease / RENEWALS + _LATE
        while True:
            await asyncio.sleep(_EVERY if self.silence >= overdue else max(overdue - self.silence, _LOOK))
            async with self._noting:
                if self.silence >= overdue:
                    await self._note(self.silence)

    async def end(self) -> None:
        """There will be no other lease, whoever counts."""
        async with self._noting:
            await self._note(math.inf)

    async def _note(self, silence: float) -> None:
        call = asyncio.get_running_loop().run_in_executor(None, self._registry.note_silence, self._name, silence)
        await asyncio.shield(call)  # else one that is under way might land after the next
        self._noted = silence
