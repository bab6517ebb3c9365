"""What the spawner hears of procs from their agents: that they run, and how they have ended."""

from __future__ import annotations

import asyncio
import pickle

from ray_launcher.cluster.gangs import Gangs
from ray_launcher.cluster.leases import Leases
from ray_launcher.cluster.link import Link
from ray_launcher.cluster.metrics import Metrics
from ray_launcher.cluster.readiness import Readiness
from ray_launcher.cluster.restored import Restored
from ray_launcher.cluster.roster import Proc, Roster
from ray_launcher.cluster.wire import Exit, Note, Started


class Hearing:
    """Keeps an agent's report until the launcher has it, and the agent's promise to do so too."""

    def __init__(self, roster: Roster, restored: Restored, gangs: Gangs, leases: Leases, metrics: Metrics) -> None:
        self._roster, self._restored, self._gangs = roster, restored, gangs
        self._leases, self._metrics, self._readiness = leases, metrics, Readiness()
        self._unsettled: dict[str, tuple[Link, int]] = {}  # by token: a report that is kept, and its number
        self._going: set[asyncio.Future[None]] = set()

    def hear(self, link: Link, news: Started | Exit) -> None:
        """Of this spawner's launches, and of those of an earlier one, which are found by that."""
        if isinstance(news, Started):
            self._hear_start(link, news)
        else:
            self._hear_end(link, news)
            self._return_lease(link, news)

    def settle(self, token: str) -> None:
        """The report of this launch need not be kept any longer, if there is one."""
        kept = self._unsettled.pop(token, None)
        if kept is not None:
            kept[0].settle(kept[1])

    def _hear_start(self, link: Link, news: Started) -> None:
        proc = self._of(link, news)
        if proc is not None:
            proc.runs(news)
            if proc.ready_when is not None and news.pid:
                self._readiness.watch(proc, proc.ready_when)

    def _hear_end(self, link: Link, news: Exit) -> None:
        proc = self._of(link, news)
        if proc is None:
            if news.token not in self._unsettled:
                link.settle(news.sequence)  # nobody will ask for it
            return
        if news.sequence:
            self._unsettled[news.token] = link, news.sequence
        when = link.ours(news.when)
        self._metrics.heard_of_end(when)
        proc.finish(news.report, when)

    def _of(self, link: Link, news: Started | Exit) -> Proc | None:
        """None also where it is told again, as the launcher has been, which has not said yet that it knows."""
        proc = self._roster.by_token(news.token)
        return self._find(link, news) if proc is None and news.token not in self._unsettled else proc

    def _find(self, link: Link, news: Started | Exit) -> Proc | None:
        """The proc of an agent's news that this spawner, having been restarted, has not heard of; None: no longer."""
        if not news.note:
            return None
        note: Note = pickle.loads(news.note)  # noqa: S301  # our own
        if note.member is not None and note.member.attempt < self._gangs.attempt(note.key):
            return None
        if not self._restored.expects(note.key):
            return None
        proc = self._roster.add(note.proc_id, news.token, note.key, note.member)
        proc.ready_when, proc.forget = note.ready_when, note.forget
        proc.place(link)
        if note.lease is not None:
            self._leases.adopt(news.token if note.member is None else note.member.team, note.lease)
        if note.member is not None:
            self._gangs.add(proc, note.key, note.member, again=True)
        self._restored.found()
        return proc

    def _return_lease(self, link: Link, end: Exit) -> None:
        """When nothing is left of the tree: a helper that outlives the leader may still use a GPU."""
        if end.report.failed_reason is not None:
            self._leases.release(end.token, reusable=False)
        elif end.token in self._leases:
            gone = asyncio.ensure_future(link.ask("await_gone", [end.token]))
            gone.add_done_callback(lambda _: self._leases.release(end.token, reusable=not link.lost))
            self._going.add(gone)
            gone.add_done_callback(self._going.discard)
