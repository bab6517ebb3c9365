"""Order for messages that Ray may deliver in any order: each sender numbers its own, each message waits its turn."""

from __future__ import annotations

import asyncio


class Turns:
    """Per sender, messages 0, 1, 2 … take turns. One event loop only.

    Memory: a sender costs its next number, and one entry for every message that came early.
    """

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        self._early: dict[str, set[int]] = {}  # done before their turn: cancelled on their way
        self._waiting: dict[tuple[str, int], asyncio.Future[None]] = {}

    async def wait(self, sender: str, number: int) -> None:
        """Return when every earlier message of `sender` is done. Returns without suspending when it is its turn."""
        if number <= self._next.setdefault(sender, 0):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[sender, number] = turn
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.pop((sender, number), None)
            self.done(sender, number)  # it will not come again: nobody may wait for it
            raise

    def done(self, sender: str, number: int) -> None:
        """The message has had its turn, or never will: the next may follow, not before the caller's next await."""
        current = self._next.setdefault(sender, 0)
        if number < current:
            return
        early = self._early.setdefault(sender, set())
        early.add(number)
        while current in early:
            early.remove(current)
            current += 1
        self._next[sender] = current
        turn = self._waiting.pop((sender, current), None)
        if turn is not None and not turn.done():
            turn.set_result(None)
