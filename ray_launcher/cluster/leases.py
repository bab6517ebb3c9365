"""The leases of a session: one per launch that asked for resources, handed on to the next launch that wants the same.

Ray's scheduler learns of returned resources about once a second, and a launch that could have those of a proc that has
just ended would wait for that long; handed on, a lease costs nothing (Ray does the same with its workers).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ray_launcher.cluster.lease import Lease, LeaseError, Wish, ask, leases_of, return_all

#: Seconds for which a lease that nobody waits for is kept for the next launch.
KEEP = 0.05


class Leases:
    """By the token of the launch that each is for. again: an earlier spawner may have had some."""

    def __init__(self, session: str, again: bool) -> None:
        self._session = session
        self._leases: dict[str, Lease] = {}
        self._seekers: list[tuple[Wish, asyncio.Future[Lease]]] = []
        self._idle: list[Lease] = []
        self._thread = ThreadPoolExecutor(1, "leases")  # one: what is asked for after a removal comes after it
        self._adopted: dict[str, str] = {}  # leases of an earlier spawner, by name: the launches that have them
        self._earlier = asyncio.ensure_future(self._run(leases_of, session)) if again else None

    async def hold(self, token: str, wish: Wish, timeout: float | None, on_wait: Callable[[], None]) -> Lease:
        """Wait for a lease for this launch, from now until `release`. Raises `LeaseError`.

        timeout: in seconds, after the first look.  on_wait: called whenever the resources are found not to be there.
        """
        lease = self._idle_one(wish) or await self._find(wish, timeout, on_wait)
        self._leases[token] = lease
        return lease

    def release(self, token: str, reusable: bool = True) -> None:
        """End the lease of a launch. Nothing for one that has none. reusable: its node is there."""
        self._adopted = {name: taker for name, taker in self._adopted.items() if taker != token}
        lease = self._leases.pop(token, None)
        if lease is not None:
            (self._pass_on if reusable else self._give_back)(lease)

    def __contains__(self, token: str) -> bool:
        """Whether the launch has one, perhaps of an earlier spawner."""
        return token in self._leases or token in self._adopted.values()

    @property
    def tokens(self) -> list[str]:
        """The launches that have one."""
        return list(self._leases)

    def adopt(self, token: str, name: str) -> None:
        """A launch has been found to run on this lease of an earlier spawner."""
        self._adopted[name] = token

    async def sort_out(self) -> None:
        """Every launch that runs has been found: those of an earlier spawner that no launch has are returned."""
        if self._earlier is None:
            return
        for lease in await self._earlier:
            token = self._adopted.get(lease.name)
            if token is None:
                self._give_back(lease)
            else:
                self._leases[token] = lease
        self._earlier = None

    async def end(self) -> None:
        """Return all there is, whether we know of it or not."""
        self._leases.clear()
        self._idle.clear()
        await self._run(return_all, self._session)

    def _idle_one(self, wish: Wish) -> Lease | None:
        for index, lease in enumerate(self._idle):
            if lease.wish == wish:
                return self._idle.pop(index)
        return None

    async def _find(self, wish: Wish, timeout: float | None, on_wait: Callable[[], None]) -> Lease:
        """One of our own that is free by then, or a new one."""
        handed_on: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        asked = asyncio.ensure_future(self._new(wish, timeout, on_wait))
        seeker = wish, handed_on
        self._seekers.append(seeker)
        chosen = None
        try:
            await asyncio.wait((asked, handed_on), return_when=asyncio.FIRST_COMPLETED)
            chosen = handed_on.result() if handed_on.done() else asked.result()
            return chosen
        finally:
            self._seekers.remove(seeker)
            for future in (asked, handed_on):
                future.cancel()
                future.add_done_callback(partial(self._spare, chosen))

    def _spare(self, chosen: Lease | None, found: asyncio.Future[Lease]) -> None:
        if not found.cancelled() and found.exception() is None and found.result() is not chosen:
            self._pass_on(found.result())

    async def _new(self, wish: Wish, timeout: float | None, on_wait: Callable[[], None]) -> Lease:
        asking = asyncio.ensure_future(self._run(ask, self._session, wish))
        try:
            lease: Lease = await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(lambda done: self._spare(None, done))
            raise
        except Exception as error:
            raise LeaseError(f"Ray refuses the resources: {error}") from error
        try:
            await lease.fill(self._run, timeout, on_wait)
        except BaseException:
            self._give_back(lease)
            raise
        return lease

    def _pass_on(self, lease: Lease) -> None:
        if not lease.filled:
            self._give_back(lease)
            return
        for wish, seeker in self._seekers:
            if wish == lease.wish and not seeker.done():
                seeker.set_result(lease)
                return
        self._idle.append(lease)
        asyncio.get_running_loop().call_later(KEEP, self._forget, lease)

    def _forget(self, lease: Lease) -> None:
        if lease in self._idle:
            self._idle.remove(lease)
            self._give_back(lease)

    def _give_back(self, lease: Lease) -> None:
        self._thread.submit(lease.give_back)

    async def _run(self, call: Callable[..., Any], *args: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)
