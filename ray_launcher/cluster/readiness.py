"""Finding out which procs are ready: their agents look, for a while, and are asked again."""

from __future__ import annotations

import asyncio

from ray_launcher.cluster.roster import Proc
from ray_launcher.readiness import ReadyWhen

#: Seconds before an agent is asked again that did not answer.
_RETRY = 0.2
_FILES = 2


class Readiness:
    """Of all procs of a spawner for which it is to be found out."""

    def __init__(self) -> None:
        self._watches: dict[str, asyncio.Task[None]] = {}  # by token

    def watch(self, proc: Proc, ready_when: ReadyWhen) -> None:
        """A proc runs: from now on, until it is ready or has ended."""
        if proc.token not in self._watches and not proc.ready.is_set():
            watch = self._watches[proc.token] = asyncio.ensure_future(self._watch(proc, ready_when))
            watch.add_done_callback(lambda _: self._watches.pop(proc.token))

    async def _watch(self, proc: Proc, ready_when: ReadyWhen) -> None:
        offsets, verdict = [0] * _FILES, "not yet"
        while verdict == "not yet" and not proc.end.done() and proc.link is not None:
            answer = await proc.link.ask("probe", proc.token, proc.proc_id, ready_when, offsets)
            if answer is None:
                await asyncio.sleep(_RETRY)
            else:
                verdict, offsets = answer
        if verdict == "ready":
            proc.ready.set()
