"""What has happened to the procs of a session, told to whoever asks, and to those who wait for more."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from typing import NamedTuple

from ray_launcher.cluster.nodes import Node
from ray_launcher.cluster.roster import Proc
from ray_launcher.exits import ExitReport
from ray_launcher.info import ProcState

#: Events that are remembered.
_HISTORY = 10_000
#: Of one answer.
_ANSWER = 1_000
#: Seconds after which an answer without events is given: who asked may be gone.
_PATIENCE = 30.0
#: Seconds for which more are collected before they are told.
_MOMENT = 0.02


class Happening(NamedTuple):
    """A proc came to be in a state. when: `time.time`, by the spawner's clock."""

    when: float
    proc_id: str
    state: ProcState
    node: Node | None
    pid: int | None
    gang_id: str | None
    rank: int | None
    restarts: int
    report: ExitReport | None


#: (whose numbers these are, that of the last or None when the session has ended, the events themselves).
Answer = tuple[str, "int | None", list[Happening]]


def happening(proc: Proc) -> Happening:
    """What has just happened to it."""
    member, node = proc.rank_of, None if proc.link is None else proc.link.node
    gang_id, rank = (None, None) if member is None else (member.shape.gang_id, member.rank)
    report = proc.end.result() if proc.end.done() and not proc.end.cancelled() else None
    return Happening(time.time(), proc.proc_id, proc.state, node, proc.pid, gang_id, rank, proc.attempt, report)


class Events:
    """Numbered from 1, in each incarnation of the spawner anew."""

    def __init__(self) -> None:
        self.incarnation = uuid.uuid4().hex
        self._last = 0
        self._events: deque[Happening] = deque(maxlen=_HISTORY)
        self._more = asyncio.Event()
        self._over = False

    def add(self, event: Happening) -> None:
        """It has happened just now."""
        self._last += 1
        self._events.append(event)
        self._more.set()

    def close(self) -> None:
        """Nothing more will happen: who has been told all is told so."""
        self._over = True
        self._more.set()

    async def after(self, incarnation: str | None, number: int | None, wait: bool) -> Answer:
        """Those behind a number, of which there may be more.

        incarnation: that of the number; for another one all are told.  number: None for none of the past, 0 for all.
        wait: for a while, until there are any.
        """
        if incarnation not in (None, self.incarnation):
            number = 0
        elif number is None:
            number = self._last
        if wait and self._last <= number:
            give_up = time.monotonic() + _PATIENCE
            while self._last <= number and not self._over and (left := give_up - time.monotonic()) > 0:
                self._more.clear()
                try:
                    await asyncio.wait_for(self._more.wait(), left)
                except asyncio.TimeoutError:
                    break
            await asyncio.sleep(0 if self._over else _MOMENT)
        if self._over and self._last <= number:
            return self.incarnation, None, []
        first = self._last - len(self._events)  # the number before that of the oldest
        start = max(number - first, 0)
        told = [self._events[at] for at in range(start, min(start + _ANSWER, len(self._events)))]
        return self.incarnation, max(number, first) + len(told), told
