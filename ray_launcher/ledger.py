"""What one launcher has sent and not heard the end of: what the next post is made of, and what has to be sent again.

Mere bookkeeping: `mail` makes the calls, and has a lock around whatever it does here.
"""

from __future__ import annotations

from collections.abc import Iterable

from ray_launcher.desk import Message, Post
from ray_launcher.port import Source

#: Bytes of one post, unless its first message is longer: Ray hands on up to 100 KB without a detour through its store.
_POST = 90_000


class Ledger:
    """Messages are numbered from 0, in the order in which they are sent."""

    def __init__(self) -> None:
        self.count = 0  # messages so far
        self.open: dict[int, tuple[bytes, Source]] = {}  # launches without an outcome: payload, port
        self.refs: dict[int, Source] = {}  # launches for which the spawner owes an answer to `serve_attach`
        self._outbox: list[Message] = []
        self._underway: list[Message] = []
        self._resync: list[int] | None = None  # the open launches, to be told with the next post
        self._requests: dict[int, tuple[Message, Iterable[int]]] = {}  # with the launches that they are about
        self._tidy_at = 64
        self._settled: list[int] = []  # the spawner need not keep these outcomes any longer

    # -- out ------------------------------------------------------------------------------------------------------

    def launch(self, payloads: list[bytes], sources: list[Source]) -> None:
        """The next messages are launches, whose outcomes are for `sources`."""
        numbers = range(self.count, self.count + len(payloads))
        messages = [Message(number, "launch", payload) for number, payload in zip(numbers, payloads, strict=True)]
        self.open.update(zip(numbers, zip(payloads, sources, strict=True), strict=True))
        self._outbox += messages
        self.count += len(payloads)

    def send(self, kind: str, payload: bytes, about: Iterable[int]) -> None:
        """A message of another kind, to be sent again while one of the launches that it is about is open."""
        message = Message(self.count, kind, payload)
        self._outbox.append(message)
        self.count += 1
        if about:
            self._requests[message.number] = message, about
            if len(self._requests) >= self._tidy_at:
                self._forget_requests()
                self._tidy_at = max(64, 2 * len(self._requests))

    def withdraw(self, number: int) -> bool:
        """Forget a launch that has never been sent; False: it has been."""
        unsent = [message for message in self._outbox if message.number == number and not message.again]
        if unsent:
            self._outbox.remove(unsent[0])
            self.open.pop(number)
        return bool(unsent)

    @property
    def has_more(self) -> bool:
        """Whether there is anything to post."""
        return bool(self._outbox or self._settled or self._resync is not None)

    def next_post(self) -> Post:
        """As many messages as fit, and all else; they are under way from now on."""
        self._underway, self._outbox = _as_much_as_fits(self._outbox)
        upto = self._underway[-1].number if self._outbox else self.count - 1
        post = Post(upto, self._underway, self.take_settled(), self._resync)
        self._resync = None
        return post

    def posted(self) -> None:
        """What was under way has arrived."""
        self._underway = []

    def refused(self, post: Post) -> None:
        """Its messages come to nothing; the next goes on with all else."""
        self._underway = []
        self._settled += post.settled
        if post.open is not None:
            self._resync = [number for number in post.open if number in self.open]

    def collect_again(self) -> None:
        """For a spawner that knows nothing of us: all that is open, and all that has not been taken on for certain."""
        unsent = {message.number: message for message in self._outbox}
        launches = [
            unsent.get(number, Message(number, "launch", payload, again=True))
            for number, (payload, _) in self.open.items()
        ]
        owed = [
            Message(number, "outcome", source.raw) for number, source in self.refs.items() if source.raw is not None
        ]
        self._forget_requests()
        requests = {number: message for number, (message, _) in self._requests.items()}
        others = {
            message.number: message
            for message in (*self._underway, *self._outbox)
            if message.kind not in ("launch", "outcome")
        }
        self._outbox = sorted([*launches, *owed, *(requests | others).values()])
        self._resync, self._underway = list(self.open), []

    def give_up(self) -> list[int]:
        """Nothing is sent any more; returns the launches that are open."""
        self._outbox = []
        return list(self.open)

    def _forget_requests(self) -> None:
        self._requests = {
            number: (message, about)
            for number, (message, about) in self._requests.items()
            if not self.open.keys().isdisjoint(about)
        }

    # -- in -------------------------------------------------------------------------------------------------------

    def close(self, number: int) -> Source | None:
        """A launch is not open any more. None: it was not."""
        _, source = self.open.pop(number, (b"", None))
        return source

    def arrived(self, number: int, outcome: bytes) -> Source | None:
        """The outcome of a launch. None: it was not open."""
        source = self.close(number)
        if source is not None:
            source.raw = outcome
        if number not in self.refs:
            self._settled.append(number)
        return source

    def settle(self, numbers: list[int]) -> None:
        """The spawner is to be told that it need not keep the outcomes of these."""
        self._settled += numbers

    def take_settled(self) -> list[int]:
        """Those of which it has not been told; the caller tells it, or hands them to `settle` again."""
        settled, self._settled = self._settled, []
        return settled

    # -- refs -----------------------------------------------------------------------------------------------------

    def owe(self, number: int, source: Source) -> bytes | None:
        """The spawner is about to be asked for a ref of this launch; returns the outcome if it is there."""
        if source.raw is None:
            self.refs[number] = source
        return source.raw

    def answered(self, number: int, source: Source, known: bool) -> None:
        """The spawner has answered; known: with the outcome."""
        self.refs.pop(number, None)
        told = source.raw is not None
        if known and number in self.open:
            del self.open[number]
            told = True
        if told:
            self._settled.append(number)


def _as_much_as_fits(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    size = 0
    for index, message in enumerate(messages):
        size += len(message.payload) + 30
        if index and size > _POST:
            return messages[:index], messages[index:]
    return messages, []
