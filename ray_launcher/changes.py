"""The changes of procs' states as a spawner tells them, call after call, to an iterator or to a callback."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timezone
from functools import partial
from typing import Any

import ray
from ray import ObjectRef

from ray_launcher.cluster.events import Answer, Happening
from ray_launcher.exits import decode_exit
from ray_launcher.info import ProcEvent
from ray_launcher.port import call_back, run_soon


class Changes:
    """One who listens. ask(incarnation, number, wait): see `cluster.events.Events.after`."""

    def __init__(self, ask: Callable[[str | None, int | None, bool], ObjectRef[Any]], past: bool, follow: bool) -> None:
        self._ask, self._follow = ask, follow
        self._told: dict[str, tuple[object, ...]] = {}  # by proc_id: its last state
        self.asked = ask(None, 0 if past or not follow else None, False)
        self._behind: tuple[str | None, int | None] = None, None
        self.over = False

    def take(self, answer: Answer) -> list[ProcEvent]:
        """What the answer to the last question tells for the first time."""
        incarnation, last, happened = answer
        if last is None or not (self._follow or happened):
            self.over = True
            return []
        self._behind = incarnation, last
        return [_event(each) for each in happened if self._is_new(each)]

    def ask(self) -> ObjectRef[Any]:
        """For more; raises what the sending of a call does."""
        self.asked = self._ask(*self._behind, self._follow)
        return self.asked

    def let_go(self, timeout: float) -> None:
        """Wait for an answer that is under way: the session has ended, and the spawner is killed next."""
        ray.wait([self.asked], timeout=timeout)

    def _is_new(self, event: Happening) -> bool:
        state = event.state, event.restarts, event.pid
        if self._told.get(event.proc_id) == state:
            return False
        self._told[event.proc_id] = state
        return True


class Listener:
    """Calls back for each change; no thread waits for them."""

    def __init__(self, changes: Changes, fn: Callable[[ProcEvent], object], may_ask: Callable[[], bool]) -> None:
        self._changes, self._fn, self._may_ask = changes, fn, may_ask
        self._over = threading.Event()
        self._stopped = False
        self._hear(changes.asked)

    def stop(self) -> None:
        """Call back no more."""
        self._stopped = True

    def let_go(self, timeout: float) -> None:
        """As `Changes.let_go`; what has happened until the end is told."""
        self._over.wait(timeout)

    def _hear(self, ref: ObjectRef[Any]) -> None:
        ref.future().add_done_callback(lambda answer: run_soon(partial(self._heard, answer)))

    def _heard(self, answer: Future[Answer]) -> None:
        over = True
        try:
            if answer.exception() is None:
                for event in self._changes.take(answer.result()):
                    call_back(partial(self._tell, event))
                if not (self._changes.over or self._stopped) and self._may_ask():
                    self._hear(self._changes.ask())
                    over = False
        finally:
            if over:
                self._over.set()

    def _tell(self, event: ProcEvent) -> None:
        if not self._stopped:
            self._fn(event)


def _event(happened: Happening) -> ProcEvent:
    node, report = happened.node, happened.report
    return ProcEvent(
        when=datetime.fromtimestamp(happened.when, timezone.utc),
        proc_id=happened.proc_id,
        state=happened.state,
        node_id=None if node is None else node.node_id,
        node_ip=None if node is None else node.ip,
        pid=happened.pid,
        gang_id=happened.gang_id,
        rank=happened.rank,
        restarts=happened.restarts,
        result=None if report is None else decode_exit(report),
    )
