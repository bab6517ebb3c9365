"""Pace: how often a long poll is answered while much is going on."""

from __future__ import annotations

import asyncio


class Pace:
    """Keeps answers with news apart while much is going on: each costs more than a launch."""

    #: Seconds to the next answer for each launch that is under way, and at the most.
    EACH, MOST = 0.0003, 0.01

    def __init__(self) -> None:
        self._last = float("-inf")

    async def wait(self, under_way: int) -> None:
        """Return when the next answer may be given. After a silence that is at once."""
        loop = asyncio.get_running_loop()
        patience = self._last + min(self.MOST, self.EACH * under_way) - loop.time()
        if patience > 0:
            await asyncio.sleep(patience)
        self._last = loop.time()
