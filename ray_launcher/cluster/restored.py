"""What a spawner that was started again does not know yet: which procs its agents have, and who still asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from ray_launcher.cluster.link import Link
from ray_launcher.cluster.nodes import Node
from ray_launcher.desk import LaunchKey


class Restored:
    """`links` to the agents of earlier spawners; the first spawner of a session has none, and nothing to wait for.

    caught_up: see `Owed`; set here.  owner: the only launcher that has launched anything; or claims: all launches of
    which launchers have no outcome.
    """

    def __init__(
        self, links: list[Link], caught_up: asyncio.Event, owner: str, claims: Mapping[str, set[int]] | None
    ) -> None:
        self._caught_up = caught_up
        # Asked for before, and neither found, nor launched, nor told to be lost:
        self._unknown = {(launcher, number) for launcher, numbers in (claims or {}).items() for number in numbers}
        self.lost: list[Node] = []  # nodes of earlier spawners, lost, or agents that have forgotten, what ran there
        self._first = not links
        self._waiting = len(links)
        self._owner, self._complete = owner, claims is not None
        self._claims = dict(claims or {})  # by launcher: all launches of which it has no outcome
        self._found: set[LaunchKey] = set()
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._tasks = [asyncio.ensure_future(self._await(link)) for link in links]
        if self._first:
            caught_up.set()

    async def claimed(self, launcher: str) -> None:
        """Return when everything is known, and what `launcher` still asks for, too."""
        await self._when(lambda: not self._waiting and (self._complete or launcher in self._claims))

    async def until(self, known: Callable[[], bool] = lambda: False) -> None:
        """Return when `known()`, or when every agent has told what it knows, or is lost. Usually that is at once.

        Who asks first goes on first: a request must not overtake its launch here.
        """
        await self._when(lambda: not self._waiting or known())

    async def decided_all(self) -> None:
        """Return when each launch that is still asked for is found, begun anew, or refused."""
        await self._when(lambda: self._knows_all() and not self._unknown)

    def expects(self, key: LaunchKey) -> bool:
        """Whether news of a launch that the spawner has not heard of is worth keeping; if so, it is noted."""
        if self._first or not self.may_come(key):
            return False
        self._found.add(key)
        self.decided(key)
        return True

    def decided(self, key: LaunchKey) -> None:
        """A launch is found, or launched anew: a later spawner will find it, too; or it is refused."""
        if key in self._unknown:
            self._unknown.discard(key)
            self._change()
        self._look()

    def may_come(self, key: LaunchKey) -> bool:
        """Whether a launch of an earlier spawner, not found yet, may still be asked for again."""
        launcher, number = key
        return number in self._claims.get(launcher, () if self._complete else {number})

    def found(self) -> None:
        """A proc has been found."""
        self._change()

    def claim(self, launcher: str, numbers: set[int]) -> list[LaunchKey]:
        """These are all the launches that `launcher` has no outcome of; returns those found that it does not claim."""
        self._claims[launcher] = numbers
        self._unknown |= {(launcher, number) for number in numbers} - self._found
        self._change()
        self._look()
        unclaimed = [key for key in self._found if key[0] == launcher and key[1] not in numbers]
        self._found.difference_update(unclaimed)
        return unclaimed

    def settled(self, launcher: str, numbers: list[int]) -> None:
        """The launcher has the outcomes of these."""
        self._claims.get(launcher, set()).difference_update(numbers)
        self._unknown.difference_update((launcher, number) for number in numbers)
        self._change()
        self._look()

    async def _await(self, link: Link) -> None:
        await link.resolved.wait()
        if link.lost or link.forgot:
            self.lost.append(link.node)
        self._waiting -= 1
        self._change()
        self._look()

    def _look(self) -> None:
        if self._first:
            return
        if self._knows_all() and not self._unknown:
            self._caught_up.set()
        else:
            self._caught_up.clear()

    def _knows_all(self) -> bool:
        return not self._waiting and (self._complete or self._owner in self._claims)

    async def _when(self, known: Callable[[], bool]) -> None:
        if not known():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((known, waiter))
            await waiter

    def _change(self) -> None:
        """Let those go on, in their order, who have waited for what is now so."""
        waiters, self._waiters = self._waiters, []
        for known, waiter in waiters:
            if waiter.done():
                continue  # it has been cancelled
            if known():
                waiter.set_result(None)
            else:
                self._waiters.append((known, waiter))
