"""The spawner's side of its launchers' mail: what each has sent, how that ended, and which of the ends it knows.

A launcher numbers its messages and has one post under way at a time, so they are taken on in order; one that comes
twice is taken on once. Every end is kept until the launcher says that it has it. A spawner that was restarted knows
no launchers: it answers with its new incarnation, and the launcher sends again what is still open (see `mail`).
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import uuid
from collections import deque
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import ray

from ray_launcher.outcomes import raised, reported
from ray_launcher.pace import Pace

if TYPE_CHECKING:
    from ray_launcher.options import LaunchOptions
    from ray_launcher.ranks import Member
    from ray_launcher.spawner import ProcSpawner

_logger = logging.getLogger(__name__)

#: A launch's own name: the launcher's id, and the number of its message.
LaunchKey = tuple[str, int]

#: Bytes of outcomes in one answer; Ray hands on up to 100 KB without a detour through its object store.
_ANSWER = 90_000


class Message(NamedTuple):
    """One message of a launcher.

    kind: "launch", a pickled (proc_id, opts), or (proc_id, opts, `Member`) for a rank of a gang, where what follows is
    for the node alone; "request", a pickled (proc_id, the numbers of the launches it is about or None for whichever
    runs, timeout in seconds or None to kill);
    "cancel", the pickled number of a launch; "call", a pickled (method, arguments); "outcome", that of launch `number`,
    for a spawner that has forgotten it.
    again: it may have been taken on before.
    """

    number: int
    kind: str
    payload: bytes
    again: bool = False


class Post(NamedTuple):
    """Some messages. upto: no later post has a message of this number or a lower one.

    settled: launches whose outcomes the launcher has.  open: all that it has none of, after a restart; None otherwise.
    """

    upto: int
    messages: list[Message]
    settled: list[int]
    open: list[int] | None = None


class Desk:
    """What `ProcSpawner` keeps for one spawner; apart from it, so that subclasses may skip its `__init__`."""

    def __init__(self, spawner: ProcSpawner) -> None:
        self.incarnation = uuid.uuid4().hex
        self._spawner = spawner
        self._running: dict[str, LaunchKey] = {}  # by proc_id: the launch that it runs for
        self._accounts: dict[str, _Account] = {}

    def account(self, launcher: str) -> _Account:
        """What there is of one launcher."""
        account = self._accounts.get(launcher)
        if account is None:
            account = self._accounts[launcher] = _Account()
        return account

    def take(self, launcher: str, post: Post) -> None:
        """Take on what is new in it, in order: each begins before the next does, and before this loop goes on."""
        account = self.account(launcher)
        for message in post.messages:
            if message.kind == "outcome":
                account.resolve(message.number, message.payload)
            elif account.is_new(message.number):
                account.keep(message.number, asyncio.ensure_future(self._carry_out(launcher, message)))
        account.took(post.upto)
        self.settle(launcher, post.settled)
        if post.open is not None and not account.resynced:  # it may come twice, and late
            account.resynced = True
            self._spawner.on_resync(launcher, set(post.open))

    def resume(self, launcher: str, messages: Iterable[Message]) -> None:
        """Take launches on that an earlier spawner had, whether or not their launcher comes with them, too."""
        account = self.account(launcher)
        for message in messages:
            account.resumed.add(message.number)
            account.keep(message.number, asyncio.ensure_future(self._carry_out(launcher, message)))

    def settle(self, launcher: str, numbers: Iterable[int]) -> None:
        """The launcher has the outcomes of these launches."""
        numbers = list(numbers)
        if numbers:
            self.account(launcher).forget(numbers)
            self._spawner.on_settled(launcher, numbers)

    async def _carry_out(self, launcher: str, message: Message) -> None:
        account = self.account(launcher)
        if message.kind == "launch":
            account.arrived(message.number, await self._launch((launcher, message.number), message))
        else:
            await self._unheard(self._request(launcher, message), message.kind)

    async def _launch(self, key: LaunchKey, message: Message) -> bytes:
        try:
            proc_id, opts, *member = pickle.loads(message.payload)[:3]  # noqa: S301  # from a launcher of the same cluster
            return reported(await self._report(key, proc_id, opts, message, *member))
        except BaseException as error:  # noqa: BLE001  # SystemExit would leave the caller waiting for ever
            if _is_actor_exit(error):
                await _leave()
            return raised(error)

    async def _report(
        self, key: LaunchKey, proc_id: str, opts: LaunchOptions, message: Message, member: Member | None = None
    ) -> object:
        first = self._running.setdefault(proc_id, key) == key
        try:
            return await self._spawner.launch_as(key, proc_id, opts, message, member)
        finally:
            if first:
                del self._running[proc_id]

    async def _request(self, launcher: str, message: Message) -> None:
        content = pickle.loads(message.payload)  # noqa: S301  # as above
        if message.kind == "cancel":
            self.account(launcher).cancel(content)
            return
        if message.kind == "call":
            method, args = content
            await getattr(self._spawner, method)((launcher, message.number), *args)
            return
        proc_id, about, timeout = content
        if about is not None:
            keys = [(launcher, number) for number in about]
            if await self._spawner.end_as(keys, timeout) or self._running.get(proc_id) not in keys:
                return
        await (self._spawner.kill(proc_id) if timeout is None else self._spawner.terminate(proc_id, timeout))

    async def _unheard(self, request: Awaitable[None], kind: str) -> None:
        """Nobody waits for the answer, and a SystemExit would end the actor with all its procs."""
        try:
            await request
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if _is_actor_exit(error):
                await _leave()
            _logger.exception("a %s raised", kind)


class _Account:
    """One launcher's messages and outcomes."""

    def __init__(self) -> None:
        self.taken = self._begun = -1  # the number of the last message that was taken on, and that has begun
        self.resynced = False  # the launcher has told what is open
        self.resumed: set[int] = set()  # launches that were taken on without it
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._dropped: set[int] = set()  # launches under way of which the launcher has the outcome
        self._expected: dict[int, asyncio.Future[bytes]] = {}  # outcomes that somebody waits for, or that are kept
        self._sequence = 0
        self._outcomes: deque[tuple[int, int, bytes]] = deque()  # sequence number, launch, outcome: not yet received
        self._news = asyncio.Event()
        self._hushed = False
        self._pace = Pace()
        self._turns: list[tuple[int, asyncio.Future[None]]] = []

    def is_new(self, number: int) -> bool:
        """Whether this message has not been taken on."""
        return number > self.taken and number not in self.resumed

    def keep(self, number: int, task: asyncio.Task[None]) -> None:
        """A message is being carried out."""
        self._tasks[number] = task
        task.add_done_callback(lambda _: self._tasks.pop(number, None))

    def took(self, upto: int) -> None:
        """Everything up to this number has been taken on, and begins before this loop comes to what is called next."""
        self.taken = max(self.taken, upto)
        asyncio.get_running_loop().call_soon(self._have_begun, self.taken)

    def _have_begun(self, upto: int) -> None:
        self._begun = upto
        for _, turn in [turn for turn in self._turns if turn[0] <= upto]:
            if not turn.done():
                turn.set_result(None)
        self._turns = [turn for turn in self._turns if turn[0] > upto]

    async def turn_of(self, number: int) -> None:
        """Return when every message up to this number has begun."""
        if number > self._begun:
            turn = asyncio.get_running_loop().create_future()
            self._turns.append((number, turn))
            await turn

    def arrived(self, number: int, outcome: bytes) -> None:
        """A launch has ended."""
        if number in self._dropped:
            self._dropped.discard(number)
            return
        self._sequence += 1
        self._outcomes.append((self._sequence, number, outcome))
        self._news.set()
        self.resolve(number, outcome)

    def resolve(self, number: int, outcome: bytes) -> None:
        """For those who wait for this launch."""
        expected = self._expectation(number)
        if not expected.done():
            expected.set_result(outcome)

    async def outcome(self, number: int) -> bytes:
        """The outcome of a launch, which may come later."""
        return await asyncio.shield(self._expectation(number))

    async def news(self, received: int) -> list[tuple[int, int, bytes]]:
        """Outcomes behind sequence number `received`, as soon as there are any."""
        while True:
            while self._outcomes and self._outcomes[0][0] <= received:
                self._outcomes.popleft()
            if self._outcomes or self._hushed:
                break
            self._news.clear()
            await self._news.wait()
        await self._pace.wait(len(self._tasks))
        news: list[tuple[int, int, bytes]] = []
        size = 0
        for outcome in self._outcomes:
            size += 50 + len(outcome[2])
            if news and size > _ANSWER:
                break
            news.append(outcome)
        return news

    def hush(self) -> None:
        """Nobody is interested in news any more."""
        self._hushed = True
        self._news.set()

    def forget(self, numbers: Iterable[int]) -> None:
        """The launcher has these outcomes; those that an earlier spawner told, nobody may carry out again."""
        for number in numbers:
            self._expected.pop(number, None)
            task = self._tasks.get(number)
            if task is not None:
                self._dropped.add(number)
                if number not in self.resumed:  # else it is taken on for the session's sake, too
                    task.cancel()

    def cancel(self, number: int) -> None:
        """Nobody wants this launch any more. One that has ended stays as it is."""
        task = self._tasks.get(number)
        if task is not None:
            task.cancel()

    def _expectation(self, number: int) -> asyncio.Future[bytes]:
        expected = self._expected.get(number)
        if expected is None:
            expected = self._expected[number] = asyncio.get_running_loop().create_future()
        return expected


def _is_actor_exit(error: BaseException) -> bool:
    return type(error).__name__ == "AsyncioActorExit" and type(error).__module__.startswith("ray.")


async def _leave() -> None:
    """End the actor now: by itself, Ray would first wait for all pending calls, which may never end."""
    ray.kill(ray.get_runtime_context().current_actor)
    await asyncio.Event().wait()
