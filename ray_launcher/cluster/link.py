"""The life of one agent, as its spawner sees it: started or found, joined, lost from sight, joined again, given up.

Whatever breaks, the link joins the agent again, learns what it knows, and sends again what it may not have got (see
`channel`). Only when the lease that the agent was last granted has run out, and its supervisor has had the time to end
every proc, is the node given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pickle
from typing import Any, Protocol

import ray
from ray.exceptions import ActorDiedError, ActorUnschedulableError, RayError, RuntimeEnvSetupError

from ray_launcher.cluster.actors import agent_actor, find, new_agent
from ray_launcher.cluster.agents import start_agent
from ray_launcher.cluster.channel import AnotherAgentError, Channel, Message
from ray_launcher.cluster.contact import Contact
from ray_launcher.cluster.environment import NOT_STARTED, setup_time
from ray_launcher.cluster.nodes import Node, is_alive
from ray_launcher.cluster.owed import Owed
from ray_launcher.cluster.registry import Registry
from ray_launcher.cluster.wire import Exit, Inventory, Launch, Request, SessionInfo, Signal, Started
from ray_launcher.exits import ExitReport
from ray_launcher.port import gone_because

#: Seconds from the end of a lease until the node's procs are taken for dead: its supervisor gives them one second
#: between TERM and KILL, and the kernel takes a moment.
BURIED = 2.5
#: Seconds beyond the grace after which an agent that does not answer is given up when the session ends; more than
#: its supervisor, and the mop-up after it, take at most.
GIVE_UP = 40.0
#: Seconds for answers that are on their way when the agent has ended.
LAST_ANSWERS = 5.0
NEVER_STARTED = "ended on request before it was started"
#: Seconds between two attempts to reach an agent that is out of reach.
_RETRY = 0.2
#: Ray's words for an actor that will not come (back).
_ENDED = (ActorDiedError, ActorUnschedulableError, RuntimeEnvSetupError)


@dataclasses.dataclass(frozen=True)
class Owner:
    """The spawner that a link belongs to. runtime_env: its agents'.  generation: how many there were before it."""

    session: SessionInfo
    runtime_env: dict[str, Any]
    owed: Owed
    generation: int = 0


class Host(Protocol):
    """Who has links."""

    def on_news(self, link: Link, news: Started | Exit) -> None:
        """Called with one `Exit` per launch, perhaps a `Started`; also of launches that are new to this spawner."""

    def on_leaving(self, link: Link) -> None:
        """Nothing can be started on the node any more."""

    def on_lost(self, link: Link, joined: bool) -> None:
        """Nothing of the node's procs is left, and all their ends have been told.

        joined: whether the agent was ever there.
        """


class Link:
    """Starts the agent of `node`, or finds the one called `name`, and talks to it.

    begun: nobody has talked to that one before.  suspect: the node has been lost before.
    """

    def __init__(
        self,
        owner: Owner,
        node: Node,
        host: Host,
        *,
        name: str | None = None,
        begun: bool = False,
        suspect: bool = False,
    ) -> None:
        session = owner.session
        self.node = node
        self.name = name or new_agent(session.name, node)
        self.launches: dict[str, bytes] = {}  # by token, those without an exit: their notes
        self.lost = False
        self.resolved = asyncio.Event()  # the agent has told what it knows, or is lost
        self._owner, self._session = owner, session
        self._host = host
        self._registry = Registry(session.name)
        self._begun = begun
        self._found = self._inherited = name is not None and not begun
        self._joined = self._restored = self._found  # there may be procs, and some of which we do not know
        self.forgot = False  # the agent does not know of all of them either
        self._suspect = suspect
        self._began = asyncio.get_running_loop().time()
        self._contact = Contact(self._registry, self.name, session.lease, self._found)
        self._why = "no contact"
        self._channel = Channel(self._heard, lambda: host.on_leaving(self))
        self._emptied: asyncio.Future[None] | None = None
        self._over = asyncio.Event()  # lost, or ended
        self.agent: Any = None
        self._started = asyncio.Event()  # there is an actor to talk to
        tasks = self._run(), self._expire(), self._contact.keep_noted()
        self._tasks: list[asyncio.Task[None]] = [asyncio.ensure_future(each) for each in tasks]
        self._last: asyncio.Future[None] | None = None

    def launch(self, message: Launch) -> None:
        """Send; from now on there will be an `Exit` for it, whatever happens."""
        self.launches[message.token] = message.note
        self._channel.send(message)

    def request(self, message: Request | Signal) -> None:
        """Send, if its launch has not ended; one that is asked to end and has not been sent yet never starts."""
        if message.token not in self.launches:
            return
        if isinstance(message, Request) and self._channel.withdraw(message.token):
            self._heard(Exit(0, message.token, _failed(NEVER_STARTED)))
        else:
            self._channel.send(message)

    def settle(self, sequence: int) -> None:
        """The report of this number need not be kept any longer; the agent is told with the next call."""
        self._channel.settle(sequence)

    @property
    def in_contact(self) -> bool:
        """Whether launches may go there: not to a node that seems lost, or was and has not come back yet."""
        if self.lost or (self._suspect and not self._joined):
            return False
        return not self._joined or self._contact.silence < self._session.lease / 2

    @property
    def silence(self) -> float:
        """Seconds since the agent was last granted its lease, or longer."""
        return self._contact.silence

    async def renew(self, clock: float) -> bool:
        """Renew the lease; False when the node has been given up. clock: the agent's, when it asked."""
        if not self.lost:
            await self._contact.renew(clock)
        return not self.lost

    def ours(self, when: float | None) -> float | None:
        """A time of the agent's node by our own clock."""
        return self._contact.ours(when)

    async def ask(self, method: str, *args: object) -> Any:
        """Call a method of the agent; None when it is lost, or the call is."""
        agent = await self.reachable()
        if self.lost or agent is None:
            return None
        over = asyncio.ensure_future(self._over.wait())
        answer = asyncio.ensure_future(getattr(agent, method).remote(*args))
        try:
            await asyncio.wait((answer, over), return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else None
        except RayError:
            return None
        finally:
            over.cancel()

    async def reachable(self) -> Any:
        """The agent's actor, once there is one; None: it is lost, or on a node that Ray takes for dead."""
        await self._started.wait()
        return self.agent

    async def all_arrived(self) -> None:
        """Return when the agent has everything that has been sent until now, or is lost."""
        await self._channel.all_arrived()

    async def end(self, grace: float) -> None:
        """End every proc of the node and the agent; returns when nothing of them is left."""
        if self._joined:  # else it has never had a proc, and may never come to be
            with contextlib.suppress(asyncio.TimeoutError):  # then its supervisor sees to the procs
                await asyncio.wait_for(self.ask("end", grace), grace + GIVE_UP)
                await asyncio.wait_for(self._last_answers(), LAST_ANSWERS if self.agent is not None else BURIED)
        await self._hush()
        self._abandon("the session ended")
        await self._forget()

    async def _last_answers(self) -> None:
        if self.launches and not self.lost:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    async def _hush(self) -> None:
        for task in self._tasks:
            task.cancel()
        if not self.lost and self.agent is not None:
            with contextlib.suppress(RayError, asyncio.TimeoutError):
                await asyncio.wait_for(self.agent.hush.remote(), LAST_ANSWERS)
                await asyncio.wait_for(self._channel.all_answered(), LAST_ANSWERS)

    # -- news -----------------------------------------------------------------------------------------------------

    def _heard(self, item: Started | Exit) -> None:
        if isinstance(item, Started):
            self.launches.setdefault(item.token, item.note)
            self._host.on_news(self, item)
            return
        self.launches.pop(item.token, None)
        self._host.on_news(self, item)
        if self._emptied is not None and not self.launches and not self._emptied.done():
            self._emptied.set_result(None)

    # -- the agent ------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                await self._reach()
                await self._meet()
                await self._channel.serve(self.agent)
            except AnotherAgentError:
                continue
            except _SupersededError:
                return  # there is a later spawner, and this process is about to end
            except _NodeGoneError:
                self._why = "the node is gone"
                break
            except RayError as error:
                self._why = _in_words(error)
                if isinstance(error, _ENDED):
                    self.agent, self._found = None, False
                    if not self._joined:  # it has never had a proc
                        break
            await asyncio.sleep(_RETRY)
        self._last = asyncio.ensure_future(self._give_up(f"the agent of node {self.node} did not start: {self._why}"))

    async def _reach(self) -> None:
        """The agent's actor: the one that is there, or a new one, which finds what it left."""
        if self.agent is None and self._found:
            self.agent = find(agent_actor(self.name))
        if self.agent is None:
            loop = asyncio.get_running_loop()
            known = self._joined or self._suspect
            if known and not await loop.run_in_executor(None, is_alive, self.node):
                if not self._joined:
                    raise _NodeGoneError
                await asyncio.Event().wait()  # it cannot come back: its lease runs out
            await loop.run_in_executor(None, self._registry.add, self.name, self.node)
            owner = self._owner
            self.agent = start_agent(owner.session, owner.runtime_env, self.node, self.name, self._joined)
        self._started.set()

    async def _meet(self) -> None:
        """Join the agent. What it does not know any more of what it had got has ended; the rest is sent again."""
        underway, unsent = self._channel.underway, self._channel.unsent
        sent = {token: note for token, note in self.launches.items() if token not in unsent}
        expected = {token: note for token, note in sent.items() if token not in underway}
        unsure = {token: note for token, note in sent.items() if token in underway}
        complete = not self._inherited or self._owner.owed.caught_up.is_set()
        answer = await self._channel.answer(self.agent.join.remote(self._owner.generation, expected, unsure, complete))
        if not answer:
            raise _SupersededError
        inventory: Inventory = pickle.loads(answer)  # noqa: S301  # from our own agent
        if not self._joined:  # it may have taken longer to start than a lease lasts
            self._contact.begin()
            self._joined = not self.lost
        if self._restored and inventory.forgot:
            self.forgot = True
            self._tasks.append(asyncio.ensure_future(self._recall(inventory.join)))
        self._restored = False
        self._channel.resume(inventory.join)
        if inventory.leaving:
            self._host.on_leaving(self)
        for end in inventory.ended:
            self._heard(end)
        for started in inventory.running:
            self._heard(started)
        known = {item.token for item in inventory.running}
        self._channel.send_again(lambda message: self._needs(message, known))
        self.resolved.set()

    async def _recall(self, join: str) -> None:
        """Once all that may have been forgotten is settled, the agent need not say any more that it was."""
        await self._owner.owed.caught_up.wait()
        await self.ask("recall", join)

    def _needs(self, message: Message, known: set[str]) -> bool:
        """Not a launch that the agent has, nor anything about one that has ended: its name may be forgotten below."""
        return message.token in self.launches and not (isinstance(message, Launch) and message.token in known)

    async def _expire(self) -> None:
        """Wait until nobody can doubt that the node's procs are dead, or that the agent will not start."""
        loop = asyncio.get_running_loop()
        lease, start = self._session.lease, self._session.start + setup_time(self._owner.runtime_env)
        while True:
            left = lease + BURIED - self._contact.silence if self._joined else self._began + start - loop.time()
            if left <= 0:
                break
            await asyncio.sleep(min(left, 1.0))  # it may join meanwhile
        if self._joined:
            reason = f"node {self.node} was lost: out of contact for its lease of {lease:g} s ({self._why})"
        else:
            reason = f"the agent of node {self.node} did not start within {start:g} s ({self._why}): {NOT_STARTED}"
        self._last = asyncio.ensure_future(self._give_up(reason))

    async def _give_up(self, reason: str) -> None:
        lost = [pickle.loads(note).key for note in self.launches.values()]  # noqa: S301  # our own
        self._abandon(reason)
        self._host.on_lost(self, self._joined)  # at once: nothing may be launched through a link that is lost
        if self._joined:  # a spawner that comes before they are settled must learn that the node was lost
            await self._contact.end()
            await self._owner.owed.until_settled(lost)
        await self._forget()

    def _abandon(self, reason: str) -> None:
        self.lost = True
        self._over.set()
        for task in self._tasks:
            task.cancel()
        if self.agent is None and self._begun:
            self.agent = find(agent_actor(self.name))  # it is there, though we had not come to it
        if self.agent is not None:
            ray.kill(self.agent)
        self._started.set()
        for token in list(self.launches):
            self._heard(Exit(0, token, _failed(reason)))
        self._channel.close()
        self.resolved.set()

    async def _forget(self) -> None:
        with contextlib.suppress(Exception):
            await asyncio.get_running_loop().run_in_executor(None, self._registry.remove, self.name)


class _NodeGoneError(Exception):
    """It has been lost before, and is not there again."""


class _SupersededError(Exception):
    """A later spawner of the session has joined the agent."""


def _in_words(error: RayError) -> str:
    if isinstance(error, RuntimeEnvSetupError):  # a traceback, but for its last line
        return f"its runtime_env could not be set up: {str(error).strip().splitlines()[-1]}"
    return gone_because(error)


def _failed(reason: str) -> ExitReport:
    return ExitReport(None, None, False, reason, ())
