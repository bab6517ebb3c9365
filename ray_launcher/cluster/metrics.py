"""What a session's spawner tells Ray's metrics of its procs; scraped from each node's metrics export port.

Counts and times are noted as things happen, which costs next to nothing, and told every few seconds. Ray itself forgets
a gauge whose process is gone (after 20 s, measured with 2.60), so none stays for ever where a spawner is killed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias

import ray
from ray.util import metrics

from ray_launcher.cluster.roster import Proc
from ray_launcher.exits import ExitReport

_logger = logging.getLogger(__name__)

#: Seconds between two tellings.
EVERY = 5.0
#: So many tellings share one look at the memory of supervisors.
_LOOK = 6
#: Values of one histogram that are told at a stretch: each takes two microseconds of the event loop's.
_STRETCH = 500

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

PROCS = "ray_launcher_procs"
LAUNCH_SECONDS = "ray_launcher_launch_seconds"
EXIT_NOTICE_SECONDS = "ray_launcher_exit_notice_seconds"
EXITS = "ray_launcher_exits"
RESTARTS = "ray_launcher_restarts"
SUPERVISOR_BYTES = "ray_launcher_supervisor_bytes"

#: How procs end.
KINDS = ("exited 0", "exited other", "signaled", "failed")
#: Where nothing is on a node yet.
_NO_NODE = ""

Tags: TypeAlias = tuple[str, ...]
#: Answers with the bytes that the supervisors take, by the address of the node.
Memory: TypeAlias = Callable[[], Awaitable[Mapping[str, float]]]


def exported() -> bool:
    """Whether this node exports metrics. Blocks for a few milliseconds."""
    here = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return any(node["NodeID"] == here and node.get("MetricsExportPort", 0) > 0 for node in nodes)


class Metrics:
    """Of one session. living(): its procs.  memory: of its supervisors.  is_on: blocks, and decides once."""

    def __init__(
        self,
        session: str,
        living: Callable[[], Iterable[Proc]],
        memory: Memory,
        is_on: Callable[[], bool] = exported,
        every: float = EVERY,
    ) -> None:
        self._session, self._living, self._memory, self._every = session, living, memory, every
        self._on = True  # until we know
        self._sought: dict[str, float] = {}  # by token, those on their way: since when
        self._launches: list[float] = []
        self._notices: list[float] = []
        self._exits: Counter[Tags] = Counter()
        self._restarts = 0
        self._instruments: _Instruments | None = None
        self._shown: set[Tags] = set()  # states and nodes of which a count has been told
        self._shown_memory: set[str] = set()
        self._tellings = 0
        self._task = asyncio.ensure_future(self._tell_for_ever(is_on))

    # -- what happens ---------------------------------------------------------------------------------------------

    def sought(self, proc: Proc) -> None:
        """A launch has been taken on: its node is being chosen."""
        if self._on:
            self._sought[proc.token] = time.monotonic()

    def changed(self, proc: Proc) -> None:
        """It has come to be in another state."""
        if not self._on:
            return
        if proc.state == "RUNNING":
            since = self._sought.pop(proc.token, None)
            if since is not None:
                self._launches.append(time.monotonic() - since)
        elif proc.end.done():
            self._sought.pop(proc.token, None)
            if not proc.end.cancelled():
                self._exits[_node(proc), kind_of(proc.end.result())] += 1

    def heard_of_end(self, when: float | None) -> None:
        """Of a process that ended at that time, by our clock."""
        if self._on and when is not None:
            self._notices.append(max(0.0, time.time() - when))

    def restarted(self) -> None:
        """A proc that had ended is started again."""
        self._restarts += 1

    async def close(self) -> None:
        """The session has ended: tell what is left, and that nothing is there any more."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._on and self._instruments is not None:
            await self._tell(self._instruments, {}, {})

    # -- telling --------------------------------------------------------------------------------------------------

    async def _tell_for_ever(self, is_on: Callable[[], bool]) -> None:
        try:
            self._on = await asyncio.get_running_loop().run_in_executor(None, is_on)
            if self._on:
                self._instruments = _Instruments(self._session)
            while self._instruments is not None:
                await asyncio.sleep(self._every)
                counts: Counter[Tags] = Counter((_node(proc), proc.state) for proc in self._living())
                await self._tell(self._instruments, counts, await self._look_at_memory())
        except Exception:
            _logger.exception("no metrics of session %s any more", self._session)
            self._on = False
        finally:
            if not self._on:
                for noted in (self._sought, self._launches, self._notices, self._exits):
                    noted.clear()

    async def _look_at_memory(self) -> Mapping[str, float] | None:
        self._tellings += 1
        return await self._memory() if self._tellings % _LOOK == 1 else None

    async def _tell(
        self, instruments: _Instruments, counts: Mapping[Tags, int], memory: Mapping[str, float] | None
    ) -> None:
        """memory: None where nobody has looked."""
        for node, state in self._shown | counts.keys():
            instruments.procs.set(counts.get((node, state), 0), {"node": node, "state": state})
        self._shown.update(counts)
        if memory is not None:
            for node in self._shown_memory | memory.keys():
                instruments.memory.set(memory.get(node, 0.0), {"node": node})
            self._shown_memory.update(memory)
        exits, self._exits = self._exits, Counter()
        for (node, kind), count in exits.items():
            instruments.exits.inc(count, {"node": node, "kind": kind})
        restarts, self._restarts = self._restarts, 0
        if restarts:
            instruments.restarts.inc(restarts)
        launches, self._launches = self._launches, []
        await _observe(instruments.launches, launches)
        notices, self._notices = self._notices, []
        await _observe(instruments.notices, notices)


class _Instruments:
    """As Ray has them. Each has the session for a tag."""

    def __init__(self, session: str) -> None:
        of_session = {"session": session}
        self.procs = metrics.Gauge(PROCS, "Procs that live, by state and node.", ("session", "node", "state"))
        self.launches = metrics.Histogram(
            LAUNCH_SECONDS, "From when a launch is taken on until it runs.", list(_FAST), ("session",)
        )
        self.notices = metrics.Histogram(
            EXIT_NOTICE_SECONDS, "From the end of a proc until its session knows.", list(_FAST), ("session",)
        )
        self.exits = metrics.Counter(EXITS, "Ends of procs, by kind and node.", ("session", "node", "kind"))
        self.restarts = metrics.Counter(RESTARTS, "Procs started again after they had ended.", ("session",))
        self.memory = metrics.Gauge(SUPERVISOR_BYTES, "Memory (PSS) of supervisors and guards.", ("session", "node"))
        for each in (self.procs, self.launches, self.notices, self.exits, self.restarts, self.memory):
            each.set_default_tags(of_session)


async def _observe(histogram: metrics.Histogram, values: list[float]) -> None:
    for at in range(0, len(values), _STRETCH):
        for value in values[at : at + _STRETCH]:
            histogram.observe(value)
        await asyncio.sleep(0)


def _node(proc: Proc) -> str:
    return _NO_NODE if proc.link is None else proc.link.node.ip


def kind_of(report: ExitReport) -> str:
    """How a proc has ended, in one of the words of `KINDS`."""
    if report.failed_reason is not None:
        return "failed"
    if report.signal is not None:
        return "signaled"
    return "exited 0" if report.exit_code == 0 else "exited other"
