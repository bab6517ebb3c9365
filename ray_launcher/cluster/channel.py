"""The spawner's talk with one agent: messages out in order, news in, and what has to be said again after a break.

Which agent it is, and whether there will be one at all, is the link's business: see `link`.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError

from ray_launcher.cluster.wire import Exit, Launch, News, Request, Signal, Started

Message = Launch | Request | Signal


class AnotherAgentError(Exception):
    """The agent was started again, or has been joined by somebody else since."""


class Channel:
    """Outlives agents: each that comes is joined first, then `resume`, `send_again` and `serve` follow.

    on_news(item): gets everything that the agent tells; something may be told anew after a join.
    on_leaving(): called before that when the node is, see `News`.
    """

    def __init__(self, on_news: Callable[[Started | Exit], None], on_leaving: Callable[[], None]) -> None:
        self._on_news, self._on_leaving = on_news, on_leaving
        self._join = ""
        self._calls = self._received = 0
        self._gaps: dict[int, int] = {}
        self._settled: list[int] = []
        self._outbox: list[Message] = []
        self._underway: list[Message] = []
        self._mail = asyncio.Event()
        self._sent = self._arrived = 0  # messages
        self._arrivals: list[tuple[int, asyncio.Future[None]]] = []  # who waits for how many to have arrived
        self._unanswered: set[Any] = set()  # refs
        self._closed = False

    @property
    def underway(self) -> set[str]:
        """The launches of which nobody knows whether they have arrived: their tokens."""
        return _launches(self._underway)

    @property
    def unsent(self) -> set[str]:
        """The launches that cannot have arrived."""
        return _launches(self._outbox)

    def send(self, message: Message) -> None:
        """Send as soon as there is an agent, behind all that has been sent before."""
        self._sent += 1
        self._outbox.append(message)
        self._mail.set()

    def withdraw(self, token: str) -> bool:
        """Take a launch back, and all that follows about it. False: it has been sent, or may have been."""
        if token not in self.unsent:
            return False
        self._outbox = [message for message in self._outbox if message.token != token]
        self._arrived = self._sent - len(self._outbox) - len(self._underway)
        self._tell_arrivals()
        return True

    def settle(self, sequence: int) -> None:
        """The report of this number need not be kept any longer; the agent is told with the next call."""
        self._settled.append(sequence)

    async def all_arrived(self) -> None:
        """Return when the agent has everything that has been sent until now, or the channel is closed."""
        if self._arrived < self._sent and not self._closed:
            arrival = asyncio.get_running_loop().create_future()
            self._arrivals.append((self._sent, arrival))
            await arrival

    def resume(self, join: str) -> None:
        """The agent has been joined: its news begin anew."""
        self._join, self._received, self._gaps = join, 0, {}

    def send_again(self, wanted: Callable[[Message], bool]) -> None:
        """Send what may not have arrived once more, in its order; the rest of it counts as arrived."""
        unsent = self._underway + self._outbox
        self._underway = []
        self._outbox = [message for message in unsent if wanted(message)]
        self._arrived += len(unsent) - len(self._outbox)
        self._tell_arrivals()
        self._mail.set()

    async def serve(self, agent: Any) -> None:
        """Exchange messages and news with the agent until that fails. Raises RayError and `AnotherAgentError`."""
        await _first_error(self._post(agent), self._poll(agent))

    async def answer(self, ref: Any) -> Any:
        """The agent's; whoever is cancelled meanwhile leaves it to `all_answered`."""
        self._unanswered.add(ref)
        try:
            answer = await ref
        except RayError:
            self._unanswered.discard(ref)
            raise
        self._unanswered.discard(ref)
        return answer

    async def all_answered(self) -> None:
        """Return when nothing waits for the agent: Ray would report it as failed when the agent is killed."""
        await asyncio.gather(*self._unanswered, return_exceptions=True)

    def close(self) -> None:
        """Nothing arrives any more."""
        self._closed = True
        self._tell_arrivals()

    async def _post(self, agent: Any) -> None:
        """One message under way at a time keeps their order; what comes meanwhile makes up the next."""
        while True:
            await self._mail.wait()
            self._mail.clear()
            if self._outbox:
                self._underway, self._outbox = self._outbox, []
                await self._call(agent.post, pickle.dumps(self._underway))
                self._arrived += len(self._underway)
                self._underway = []
                self._tell_arrivals()

    async def _poll(self, agent: Any) -> None:
        while True:
            await self._call(agent.poll)

    async def _call(self, method: Any, *args: object) -> None:
        self._calls += 1
        settled, self._settled = self._settled, []
        try:
            answer = await self.answer(method.remote(self._join, self._calls, self._received, settled, *args))
        except BaseException:
            self._settled += settled
            raise
        if not answer:
            self._settled += settled
            raise AnotherAgentError
        self._take(pickle.loads(answer))  # noqa: S301  # from our own agent

    def _take(self, news: News) -> None:
        """Both calls bring news, and either answer may come first."""
        if news.leaving:
            self._on_leaving()
        for item in news.items:
            self._on_news(item)
        self._gaps[news.after] = news.upto
        while self._received in self._gaps:
            upto = self._gaps.pop(self._received)
            if upto == self._received:
                break
            self._received = upto

    def _tell_arrivals(self) -> None:
        while self._arrivals and (self._closed or self._arrivals[0][0] <= self._arrived):
            _, arrival = self._arrivals.pop(0)
            if not arrival.done():
                arrival.set_result(None)


def _launches(messages: list[Message]) -> set[str]:
    return {message.token for message in messages if isinstance(message, Launch)}


async def _first_error(*loops: Any) -> None:
    """Run loops that never return until one raises; end the others, and raise that."""
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
