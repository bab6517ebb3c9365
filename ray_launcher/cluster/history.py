"""What a session remembers of procs that have ended: the last so many, kept for a spawner that is started again, too.

They are written to Ray's own store in blocks, a moment after they have ended and by a thread of the event loop's: a
thousand ends cost some twenty calls.
"""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence

from ray_launcher.cluster.registry import Registry
from ray_launcher.desk import LaunchKey
from ray_launcher.exits import ExitReport
from ray_launcher.info import ProcInfo

#: Seconds for which ends are collected before they are written.
_MOMENT = 0.02
#: How many make up a block.
_BLOCK = 64
#: Characters of the last lines of stderr that are remembered of a proc.
_TAIL = 8_000


@dataclasses.dataclass(frozen=True)
class Past:
    """A launch that has ended. token: of its last attempt.  was_ready: so was that."""

    key: LaunchKey
    token: str
    info: ProcInfo
    report: ExitReport
    was_ready: bool = False
    forget: bool = False  # as soon as it is kept


class History:
    """The last `bound` procs, one for each proc_id.

    on_kept(pasts): awaited when a spawner that is started again will know of these, too.  on_forgotten(pasts): called
    when nobody is told of these any more.
    """

    def __init__(
        self,
        registry: Registry,
        bound: int,
        on_kept: Callable[[Sequence[Past]], Awaitable[None]],
        on_forgotten: Callable[[Sequence[Past]], None],
        again: bool,
    ) -> None:
        self._registry, self._bound = registry, bound
        self._on_kept, self._on_forgotten = on_kept, on_forgotten
        self._pasts: OrderedDict[str, Past] = OrderedDict()  # by proc_id
        self._by_key: dict[LaunchKey, Past] = {}
        self._blocks: deque[tuple[int, list[Past]]] = deque()
        self._unkept: list[Past] = []
        self._forgotten: list[Past] = []
        self._keeping: asyncio.Task[None] | None = None
        self._closed = False
        self._lock = asyncio.Lock()  # around what is done to blocks
        for number, pickled in sorted(registry.blocks().items() if again else ()):
            block: list[Past] = pickle.loads(pickled)  # noqa: S301  # our own
            self._blocks.append((number, block))
            for past in block:
                self._enter(past)

    def add(self, past: Past) -> None:
        """A launch has ended."""
        past = _shortened(past)
        self._enter(past)
        self._unkept.append(past)
        if not self._closed and (self._keeping is None or self._keeping.done()):
            self._keeping = asyncio.ensure_future(self._keep())

    def find(self, proc_id: str) -> Past | None:
        """The last of that name."""
        return self._pasts.get(proc_id)

    def by_key(self, key: LaunchKey) -> Past | None:
        """That launch, if it is remembered."""
        return self._by_key.get(key)

    def pasts(self) -> list[Past]:
        """In the order of their ends."""
        return list(self._pasts.values())

    def infos(self) -> list[ProcInfo]:
        """The same."""
        return [past.info for past in self._pasts.values()]

    def to_forget(self) -> list[Past]:
        """Those that are to be removed."""
        return [past for past in self.pasts() if past.forget]

    async def remove(self, past: Past) -> None:
        """Forget it."""
        await self.kept()
        self._leave(past)
        async with self._lock:
            for number, block in self._blocks:
                if past in block:
                    block.remove(past)
                    await self._save(number, block)

    async def kept(self) -> None:
        """Return when all that has ended until now is kept."""
        if self._keeping is not None:
            await asyncio.shield(self._keeping)

    async def close(self) -> None:
        """Nothing more is kept: return when nothing is being written."""
        self._closed = True
        await self.kept()

    # -- keeping --------------------------------------------------------------------------------------------------

    def _enter(self, past: Past) -> None:
        earlier = self._pasts.pop(past.info.proc_id, None)
        if earlier is not None:
            self._by_key.pop(earlier.key, None)
            self._forgotten.append(earlier)
        self._pasts[past.info.proc_id] = self._by_key[past.key] = past
        while len(self._pasts) > self._bound:
            _, oldest = self._pasts.popitem(last=False)
            self._by_key.pop(oldest.key, None)
            self._forgotten.append(oldest)

    def _leave(self, past: Past) -> None:
        self._by_key.pop(past.key, None)
        if self._pasts.get(past.info.proc_id) is past:
            del self._pasts[past.info.proc_id]

    async def _keep(self) -> None:
        while self._unkept:
            await asyncio.sleep(_MOMENT)
            async with self._lock:
                pasts, self._unkept = self._unkept, []
                for at in range(0, len(pasts), _BLOCK):
                    await self._keep_some(pasts[at : at + _BLOCK])
            await self._on_kept(pasts)
            forgotten, self._forgotten = self._forgotten, []
            self._on_forgotten(forgotten)

    async def _keep_some(self, pasts: list[Past]) -> None:
        if not self._blocks or len(self._blocks[-1][1]) + len(pasts) > _BLOCK:
            self._blocks.append((self._blocks[-1][0] + 1 if self._blocks else 0, []))
        number, block = self._blocks[-1]
        block.extend(pasts)
        await self._save(number, block)
        while len(self._blocks) > 1 and not any(self._by_key.get(past.key) is past for past in self._blocks[0][1]):
            number, _ = self._blocks.popleft()
            await asyncio.get_running_loop().run_in_executor(None, self._registry.drop_block, number)

    async def _save(self, number: int, block: list[Past]) -> None:
        pickled = pickle.dumps(block)
        await asyncio.get_running_loop().run_in_executor(None, self._registry.save_block, number, pickled)


def _shortened(past: Past) -> Past:
    """With as many of the last lines as are remembered."""
    lines: list[str] = []
    room = _TAIL
    for line in reversed(past.report.stderr_tail or ()):
        room -= len(line) + 1
        if room < 0:
            break
        lines.insert(0, line)
    if len(lines) == len(past.report.stderr_tail or ()):
        return past
    report = dataclasses.replace(past.report, stderr_tail=lines)
    result = past.info.result and dataclasses.replace(past.info.result, stderr_tail=lines)
    return dataclasses.replace(past, report=report, info=dataclasses.replace(past.info, result=result))
