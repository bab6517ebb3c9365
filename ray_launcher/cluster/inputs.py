"""The agent's part in what procs are given to read: pieces handed on to the supervisor, and its answers waited for."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from ray_launcher.cluster.keeper import Keeper

#: Seconds after which who waits for room is told to ask again: he may be gone.
_PATIENCE = 2.0
#: Bytes of one piece of what is all there, and its writer.
_PIECE = 64 << 10
_ALL = "all"


class Taken(NamedTuple):
    """How much of one writer's input has been taken, and whether there may come more.

    state: "pipe" or "terminal", as it takes more; "shut", when nobody reads any more; "ended", with the proc; "none",
    for a proc that was not to have any.
    """

    offset: int
    state: str


class Inputs:
    """Of one agent. It keeps nothing: one that comes after it is asked again, and a supervisor knows what it has."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._asked: dict[tuple[bytes, bytes], list[asyncio.Future[Taken]]] = {}

    async def put(self, token: str, writer: str, offset: int, data: bytes, last: bool) -> Taken | None:
        """Hand input on. None: there has been no room for it for a while; ask again.

        offset: of `data` in all that comes from this writer; what is not new does nothing.  last: there is no more.
        """
        if token not in self._keeper.running:
            return Taken(0, "ended")
        key = token.encode(), writer.encode()
        answer = asyncio.get_running_loop().create_future()
        waiting = self._asked.setdefault(key, [])
        waiting.append(answer)
        self._keeper.send(b"input", *key, b"%d" % offset, b"%d" % last, data)
        try:
            taken: Taken = await asyncio.wait_for(answer, _PATIENCE)
        except asyncio.TimeoutError:
            return None
        finally:
            waiting.remove(answer)
            if not waiting:
                self._asked.pop(key, None)
        return taken if token in self._keeper.running else taken._replace(state="ended")

    async def put_all(self, token: str, data: bytes) -> None:
        """Return when a proc that nobody else gives anything has all of it, with the end, or reads no more."""
        at, last = 0, False
        while not last or at < len(data):
            piece = data[at : at + _PIECE]
            last = at + len(piece) == len(data)
            taken = await self.put(token, _ALL, at, piece, last)
            if taken is None:
                last = False
                continue
            if taken.state in ("ended", "none") or (taken.state == "shut" and not last):
                return
            at = max(at, taken.offset)

    def took(self, token: bytes, writer: bytes, offset: bytes, state: bytes) -> None:
        """The supervisor's answer."""
        for answer in self._asked.get((token, writer), ()):
            if not answer.done():
                answer.set_result(Taken(int(offset), state.decode()))
