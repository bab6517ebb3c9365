"""What an agent has to tell its spawner: news, numbered until it has arrived, and ends, kept until acknowledged.

The spawner asks for it by two kinds of calls, and says with each what has arrived. Either may be asked again, or be a
late one from before the last join: see `Feed.hear`.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator

from ray_launcher.cluster.wire import Exit, News, Started

#: Seconds for which the answer to launches waits for their ends.
HOLD = 0.003


class Feed:
    """One per agent; each join begins it anew. leaving: whether the node is, see `News`."""

    def __init__(self, leaving: Callable[[], bool] = lambda: False) -> None:
        self._leaving = leaving
        self.join = ""  # the last of the spawner's joins: what it said before is not heard
        self.kept: dict[int, Exit] = {}  # reports that nobody has acknowledged
        self._calls: dict[str, int] = {}  # the last call of each kind
        self._polls = 0
        self._news: deque[tuple[int, Started | Exit]] = deque()  # numbered; until the spawner has received it
        self._numbered = self._told = 0
        self._fresh = asyncio.Event()
        self._answering = 0  # calls
        self._silent: asyncio.Future[None] | None = None
        self._held: set[str] = set()  # launches that the answer to `post` waits for
        self._holding: asyncio.Future[None] | None = None

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """For as long as a call takes that may have to wait."""
        self._answering += 1
        try:
            yield
        finally:
            self._answering -= 1
            if not self._answering and self._silent is not None and not self._silent.done():
                self._silent.set_result(None)

    async def hush(self) -> None:
        """Leave, and return when no call waits any more."""
        self.leave()
        self.wake()
        if self._answering:
            self._silent = asyncio.get_running_loop().create_future()
            await self._silent
            await asyncio.sleep(0)  # they have returned; now their answers go before ours

    def leave(self) -> None:
        """From here on nobody is heard."""
        self.join = ""

    def begin(self) -> str:
        """A new join, which knows all that there has been: its name."""
        self.join = uuid.uuid4().hex
        self._calls.clear()
        self._news.clear()
        self._told = self._numbered = 0
        return self.join

    def hear(self, kind: str, join: str, call: int, received: int, settled: Iterable[int]) -> bool:
        """A call of this kind and number: False where it is not of the last join.

        received: news up to this number has arrived.  settled: reports that need not be kept. Asked again, what the
        call was told before has not arrived.
        """
        if join != self.join:
            return False
        if self._calls.get(kind) == call:
            self._told = min(self._told, received)
        self._calls[kind] = call
        while self._news and self._news[0][0] <= received:
            self._news.popleft()
        for sequence in settled:
            self.kept.pop(sequence, None)
        return True

    def add(self, item: Started | Exit) -> None:
        """Something has happened."""
        self._numbered += 1
        self._news.append((self._numbered, item))
        if isinstance(item, Exit):
            self.kept[item.sequence] = item
            self._held.discard(item.token)
        if self._holding is None:
            self.wake()
        elif not self._held:
            self._release()

    def tell(self) -> bytes:
        """A pickled `News`: all that has not been told yet."""
        after, self._told = self._told, self._numbered
        return pickle.dumps(
            News(after, self._told, [item for number, item in self._news if number > after], self._leaving())
        )

    async def hold(self, launched: set[str]) -> None:
        """Wait a moment for the ends of these launches, if there are any; polls tell nothing meanwhile."""
        if not launched:
            return
        self._held, self._holding = launched, asyncio.get_running_loop().create_future()
        timer = asyncio.get_running_loop().call_later(HOLD, self._release)
        await self._holding
        timer.cancel()
        self._holding = None

    async def fresh(self, join: str, pause: Callable[[], Awaitable[None]]) -> bool:
        """Return when there is something to tell; False: whoever asked is not listened to any more.

        pause: waited for once there is something, for more to come.
        """
        self._polls += 1
        poll = self._polls
        self.wake()  # one that was asked before is not listened to any more: it must take no news
        paused = False
        while not paused or self._told == self._numbered or self._holding is not None:
            if self._told == self._numbered or self._holding is not None:
                self._fresh.clear()
                await self._fresh.wait()
            else:
                await pause()
                paused = True
            if join != self.join or poll != self._polls:
                return False
        return True

    def wake(self) -> None:
        """Have pending polls look again."""
        self._fresh.set()

    def _release(self) -> None:
        if self._holding is not None and not self._holding.done():
            self._holding.set_result(None)
