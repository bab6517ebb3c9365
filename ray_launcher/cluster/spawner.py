"""The default spawner: one per session, knows every proc of it, and reaches their nodes through agents.

It may be killed at any time: Ray starts it again, the agents tell it what runs and what has ended, and the launchers
send again what they have no outcome of (see `restored`).
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from typing import Any

from ray_launcher.cluster.actors import is_restarted
from ray_launcher.cluster.eventlog import event_log
from ray_launcher.cluster.events import Events, happening
from ray_launcher.cluster.gangs import Gangs
from ray_launcher.cluster.hearing import Hearing
from ray_launcher.cluster.leases import Leases
from ray_launcher.cluster.link import LAST_ANSWERS, NEVER_STARTED, Link, Owner
from ray_launcher.cluster.links import Links
from ray_launcher.cluster.memory import Memory
from ray_launcher.cluster.metrics import Metrics, exported
from ray_launcher.cluster.nodes import Node, fitting
from ray_launcher.cluster.owed import Owed
from ray_launcher.cluster.placing import Placer, PlacingError
from ray_launcher.cluster.queries import Queries
from ray_launcher.cluster.registry import Registry
from ray_launcher.cluster.restored import Restored
from ray_launcher.cluster.roster import Proc, Roster
from ray_launcher.cluster.team import alone
from ray_launcher.cluster.usage import supervisors_of
from ray_launcher.cluster.wire import Exit, Launch, Note, Request, SessionInfo, Started, token_of
from ray_launcher.desk import LaunchKey, Message
from ray_launcher.exits import ExitReport
from ray_launcher.options import LaunchOptions, Placement
from ray_launcher.ranks import Member
from ray_launcher.spawner import desk_of


class ClusterSpawner(Queries):
    """Runs procs on the nodes of the cluster it lives in.

    begun: a node where an agent of this name is being started already.
    """

    def __init__(
        self, session: SessionInfo, runtime_env: dict[str, Any], begun: tuple[Node, str] | None = None
    ) -> None:
        self._events, self._log_event = Events(), event_log(session.name)
        self._roster = Roster(self._tell)
        self._awaited: dict[str, LaunchKey] = {}  # by proc_id: a launch asked for again that may be found yet
        self._watches: dict[str, asyncio.Event] = {}  # by the watcher
        self._ending = False
        again = is_restarted()
        registry = Registry(session.name)
        self._owed = Owed()
        owner = Owner(session, runtime_env, self._owed, registry.next_generation() if again else 0)
        self._owner = owner
        self._links = Links(owner, self._hear, registry.agents() if again else {})
        self._memory = Memory(
            registry,
            session,
            again,
            lambda key: self._over(key[0], [key[1]]),
            lambda pasts: self._remove_logs(pasts, self._links.agent_there),
        )
        self._metrics = Metrics(session.name, self._roster.living.values, lambda: supervisors_of(self._links), exported)
        found = self._memory.found()
        claims = {launcher: {message.number for message in messages} for launcher, messages in found.items()}
        self._restored = Restored(
            list(self._links.by_name.values()),
            self._owed.caught_up,
            session.owner,
            claims if self._memory.is_complete else None,
        )
        if begun is not None and not again:
            self._links.begin(*begun)
        self._leases = Leases(session.name, again)
        self._sorting = asyncio.ensure_future(self._sort_out())
        self._placer = Placer(self._links, self._leases, self._holders)
        self._gangs = Gangs(self._placer, registry, self, again)
        self._hearing = Hearing(self._roster, self._restored, self._gangs, self._leases, self._metrics)
        for key in self._memory.over():
            self._gangs.forget(key)
        for launcher, messages in found.items():
            desk_of(self).resume(launcher, messages)

    async def launch(self, proc_id: str, opts: LaunchOptions) -> ExitReport:
        """Not called: `launch_as` is."""
        raise NotImplementedError

    async def launch_as(
        self, key: LaunchKey, proc_id: str, opts: LaunchOptions, message: Message, member: Member | None = None
    ) -> ExitReport:
        """See `ProcSpawner.launch`."""
        member = member or alone(token_of(key), proc_id, opts)
        if message.again:
            await self._await(proc_id, key, restartable=member is not None)
        proc = self._find_launch(key)
        if proc is None:
            answer = await self._answer(key, proc_id)
            if answer is not None:
                return answer
            proc = self._begin(key, proc_id, opts.placement, message, member)
        last = await self._see_through(proc, opts, message, member)
        await self._memory.may_be_told()
        return last.end.result()

    async def _see_through(self, proc: Proc, opts: LaunchOptions, message: Message, member: Member | None) -> Proc:
        """One attempt after the other; returns the last, which has ended."""
        following: Proc | None = proc
        try:
            while following is not None:
                proc = following
                if not proc.sought:
                    proc.ready_when, proc.forget = opts.ready_when, opts.forget
                    await self._launch(proc, proc.key, opts.placement, message, member)
                await proc.end
                following = await proc.after()
        except asyncio.CancelledError:
            self._stop(proc, None)
            raise
        finally:
            self._end(proc)
            if proc.link is None:
                self._leases.release(proc.token, reusable=False)  # its node may be lost
        return proc

    async def _answer(self, key: LaunchKey, proc_id: str) -> ExitReport | None:
        """What a launch that is not under way came to, or would come to at once; None: it can begin."""
        past = self._memory.history.by_key(key)
        refusal = self._refusal(proc_id) if past is None else ""
        if past is None and not refusal:
            return None
        self._restored.decided(key)
        await self._memory.drop(key)
        if self._memory.is_complete:
            self._over(key[0], [key[1]])
        return _failed(refusal) if past is None else past.report

    def _begin(
        self, key: LaunchKey, proc_id: str, placement: Placement, message: Message, member: Member | None
    ) -> Proc:
        """A launch, of which nothing is known; one of an earlier spawner may have ended with its node."""
        proc = self._roster.add(proc_id, self._token(key), key, member)
        lost = fitting(placement, self._restored.lost) if message.again else []
        if not lost:
            self._restored.decided(key)
        else:
            proc.sought = True
            what = "was lost, or its agent and supervisor were, while the spawner was started again"
            proc.finish(_failed(f"node {', '.join(map(str, lost))} {what}: the proc ran there, or nowhere"))
            if member is not None:  # which may be ending its ranks just now
                self._gangs.add(proc, key, member._replace(attempt=self._gangs.attempt(key)), again=True)
        return proc

    def _end(self, proc: Proc) -> None:
        """It is the last attempt of its launch, whose result, once it is there, is remembered."""
        self._roster.discard(proc)
        self._memory.add(proc)

    async def serve_post(self, launcher: str, incarnation: str, post: bytes) -> str:
        """See `ProcSpawner.serve_post`; in a detached session what is taken on is safe before."""
        desk = desk_of(self)
        if self._memory.is_complete and incarnation == desk.incarnation:
            messages = pickle.loads(post).messages  # noqa: S301  # from a launcher of the same Ray cluster
            is_new = desk.account(launcher).is_new
            await self._memory.keep(launcher, [message for message in messages if is_new(message.number)])
        return await super().serve_post(launcher, incarnation, post)

    async def _sort_out(self) -> None:
        await self._restored.until()
        await self._leases.sort_out()

    async def _await(self, proc_id: str, key: LaunchKey, restartable: bool) -> None:
        """Return when the launch of an earlier spawner is found, or cannot be any more; the id is taken meanwhile.

        restartable: what is found first may have been restarted since.
        """
        first = self._awaited.setdefault(proc_id, key) == key
        try:
            await (self._restored.until() if restartable else self._known(key))
        finally:
            if first:
                del self._awaited[proc_id]

    def _token(self, key: LaunchKey) -> str:
        """Of the attempt that is under way."""
        return token_of(key, self._gangs.attempt(key))

    def _find_launch(self, key: LaunchKey) -> Proc | None:
        return self._roster.by_token(self._token(key))

    def _refusal(self, proc_id: str) -> str:
        if self._ending:
            return "the session is ending"
        if proc_id in self._roster.living or proc_id in self._awaited:
            return f"proc {proc_id!r} is already running: wait for its exit port, or choose another id"
        return ""

    async def _launch(
        self, proc: Proc, key: LaunchKey, placement: Placement, message: Message, member: Member | None
    ) -> None:
        proc.sought = True
        self._metrics.sought(proc)
        if member is not None:
            member = member._replace(attempt=self._gangs.attempt(key))
        try:
            if member is None:
                place = await self._placer.place(proc, placement)
            else:
                place = await self._gangs.seat(proc, key, member, placement, message.again)
        except PlacingError as error:
            self._gangs.stop(proc)
            proc.finish(_failed(str(error)))
            return
        if place is not None and not proc.end.done():
            link = self._links.to(place.node)
            proc.place(link)
            note = pickle.dumps(Note(proc.proc_id, key, place.lease, member, proc.ready_when, proc.forget))
            link.launch(Launch(proc.token, message.payload, note, place.grant))

    async def terminate(self, proc_id: str, timeout_secs: float) -> None:
        """See `ProcSpawner.terminate`."""
        await self._end_proc(proc_id, timeout_secs)

    async def kill(self, proc_id: str) -> None:
        """See `ProcSpawner.kill`."""
        await self._end_proc(proc_id, None)

    async def _end_proc(self, proc_id: str, timeout: float | None) -> None:
        await self._restored.until(lambda: proc_id in self._roster.living)
        if proc_id in self._roster.living:
            self._stop(self._roster.living[proc_id], timeout)

    async def end_as(self, keys: list[LaunchKey], timeout_secs: float | None) -> bool:
        """See `ProcSpawner.end_as`."""
        for key in keys:
            self._gangs.stop_launch(key)
        for key in keys:
            proc = await self._known(key)
            if proc is not None:
                self._stop(proc, timeout_secs)
            else:
                self._gangs.forget(key)
        return True

    async def _known(self, key: LaunchKey) -> Proc | None:
        """The launch of that key, once it is found, if it has not given its answer."""
        await self._restored.until(lambda: self._find_launch(key) is not None)
        return self._find_launch(key)

    def on_settled(self, launcher: str, numbers: list[int]) -> None:
        """See `ProcSpawner.on_settled`. In a detached session, that they are remembered counts."""
        if not self._memory.is_complete:
            self._over(launcher, numbers)

    def _over(self, launcher: str, numbers: list[int]) -> None:
        """The reports of these need not be kept any longer."""
        self._restored.settled(launcher, numbers)
        self._owed.settled(launcher, numbers)
        for number in numbers:
            key = launcher, number
            proc = self._find_launch(key)
            if proc is not None:  # found to have been told by an earlier spawner, or cancelled, and perhaps it runs
                self._stop(proc, None)
                self._end(proc)
            self._hearing.settle(self._token(key))
            self._gangs.forget(key)
        self._gangs.check()

    def on_resync(self, launcher: str, numbers: set[int]) -> None:
        """See `ProcSpawner.on_resync`: what has ended of others need not be kept."""
        if not self._memory.is_complete:
            self.on_settled(launcher, [number for _, number in self._restored.claim(launcher, numbers)])

    # -- for the launcher's other calls ---------------------------------------------------------------------------

    async def end_session(self, launcher: str, number: int, grace: float) -> None:
        """TERM every proc on every node, KILL `grace` seconds later; returns when they, and the agents, are gone."""
        await self.in_turn(launcher, number)
        self._ending = True
        self._gangs.close()
        for proc in list(self._roster.living.values()):
            if proc.link is None:
                self._request(proc, None)
        await self._memory.stop(LAST_ANSWERS)
        await self._links.end(grace)
        self._events.close()
        for watcher in list(self._watches):
            await self.serve_unwatch(watcher)
        await self._memory.close()
        await self._metrics.close()
        with contextlib.suppress(Exception):
            await self._leases.end()
            await asyncio.get_running_loop().run_in_executor(None, Registry(self._owner.session.name).clear)

    # -- for agents -----------------------------------------------------------------------------------------------

    async def serve_renew(self, agent: str, clock: float) -> bool:
        """The agent of this name is there; the answer is its lease. False: it has been taken for lost.

        clock: `time.time` there when it asked.
        """
        return await self._links.renew(agent, clock)

    async def serve_watch(self, watcher: str) -> None:
        """Returns when the session is over, or after `serve_unwatch`; fails when the spawner is gone for good."""
        await self._watches.setdefault(watcher, asyncio.Event()).wait()

    async def serve_unwatch(self, watcher: str) -> None:
        """The agent of this name is to have no call here."""
        watch = self._watches.pop(watcher, None)
        if watch is not None:
            watch.set()

    # -- for gangs ------------------------------------------------------------------------------------------------

    async def open_port(self, node: Node, name: str) -> int | None:
        """See `gangs.Host`."""
        return await self._links.open_port(node, name)

    def end_rank(self, proc: Proc, grace: float) -> None:
        """See `gangs.Host`."""
        self._request(proc, grace)

    def restart(self, proc: Proc, key: LaunchKey, attempt: int) -> Proc:
        """See `gangs.Host`."""
        self._hearing.settle(proc.token)
        self._metrics.restarted()
        return self._roster.again(proc, token_of(key, attempt))

    def discard(self, proc: Proc) -> None:
        """See `gangs.Host`."""
        self._hearing.settle(proc.token)
        self._roster.discard(proc)

    def may_come(self, key: LaunchKey) -> bool:
        """See `gangs.Host`."""
        return self._restored.may_come(key)

    async def claimed(self, launcher: str) -> None:
        """See `gangs.Host`."""
        await self._restored.claimed(launcher)

    # -- placing --------------------------------------------------------------------------------------------------

    def _holders(self, node_id: str) -> list[str]:
        holding = set(self._leases.tokens)
        return [
            proc.proc_id
            for proc in self._roster.living.values()
            if proc.link is not None
            and proc.link.node.node_id == node_id
            and (proc.token if proc.member is None else proc.member.team) in holding
        ]

    # -- procs ----------------------------------------------------------------------------------------------------

    def _hear(self, link: Link, news: Started | Exit) -> None:
        self._hearing.hear(link, news)

    def _tell(self, proc: Proc) -> None:
        state = proc.state
        if state != proc.told:
            proc.told = state
            event = happening(proc)
            self._events.add(event)
            self._log_event(event)
            self._metrics.changed(proc)

    def _stop(self, proc: Proc, timeout: float | None) -> None:
        """Its user wants that."""
        self._gangs.stop(proc)
        self._request(proc, timeout)

    def _request(self, proc: Proc, timeout: float | None) -> None:
        proc.ask_to_end()
        if proc.link is not None:
            proc.link.request(Request(proc.token, timeout))
        else:
            proc.finish(_failed(NEVER_STARTED + (f" again: it {proc.earlier[-1].result}" if proc.earlier else "")))


def _failed(reason: str) -> ExitReport:
    return ExitReport(None, None, False, reason, ())
