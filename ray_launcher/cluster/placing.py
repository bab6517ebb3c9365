"""Where a launch goes: a node at once for one that holds nothing, else the node of its lease, once there is one."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable

from ray_launcher.cluster.lease import Lease, LeaseError, LeaseTimeoutError, Wish, wish_of
from ray_launcher.cluster.leases import Leases
from ray_launcher.cluster.links import Links
from ray_launcher.cluster.nodes import Node, NoFittingNodeError, NoSuchNodeError
from ray_launcher.cluster.roster import Proc
from ray_launcher.cluster.waiting import capacities, why
from ray_launcher.cluster.wire import Grant
from ray_launcher.options import Placement

#: Seconds between two looks at why launches wait.
_LOOK = 1.0


class PlacingError(Exception):
    """The launch goes nowhere; the text says why."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a launch goes, and with what. lease: its name."""

    node: Node
    grant: Grant | None = None
    lease: str | None = None


class Placer:
    """Chooses for all launches of a spawner. holders: names of the procs that hold resources on a node, by its id."""

    def __init__(self, links: Links, leases: Leases, holders: Callable[[str], list[str]]) -> None:
        self._links, self._nodes, self._load = links, links.nodes, links.load
        self._leases, self._holders = leases, holders
        self._waiting: dict[str, tuple[Wish, Collection[Proc]]] = {}  # by token
        self._explaining: asyncio.Task[None] | None = None

    async def place(self, proc: Proc, placement: Placement) -> Place | None:
        """The place, or None when the proc has ended before it had one. Raises `PlacingError`.

        Does not suspend for a launch that holds nothing in the usual case, nor after the choice: those who waited
        together would all choose by the same load.
        """
        wish = wish_of(placement)
        while not proc.end.done():
            node = None if wish is not None else self._nodes.pick(placement, self._load)
            if node is not None:
                return Place(node)
            waiting = asyncio.ensure_future(
                self._nodes.wait_for(placement, self._load) if wish is None else self._lease(proc, placement, wish)
            )
            saying = asyncio.get_running_loop().call_later(_LOOK, _say, proc, placement)
            try:
                await asyncio.wait((waiting, proc.end), return_when=asyncio.FIRST_COMPLETED)
                if waiting.done() and isinstance(place := waiting.result(), Place):
                    return place
            except (NoSuchNodeError, NoFittingNodeError) as error:
                raise PlacingError(str(error)) from None
            finally:
                saying.cancel()
                waiting.cancel()
                proc.waits_for = None
        return None

    async def _lease(self, proc: Proc, placement: Placement, wish: Wish) -> Place:
        lease = await self.lease(proc.token, wish, placement, [proc])
        return Place(await self.node(lease.nodes[0]), Grant(lease.accelerators[0], {}), lease.name)

    async def lease(self, token: str, wish: Wish, placement: Placement, procs: Collection[Proc]) -> Lease:
        """Wait for a lease for `procs`, until `release`. Raises `PlacingError`."""
        likely = await self._nodes.likely(placement, self._load)
        if not self._links.by_node:  # were the spawner lost, agents would return its leases: there must be one
            self._links.to(likely)
        try:
            return await self._leases.hold(token, wish, placement.timeout, lambda: self._wait(token, wish, procs))
        except LeaseTimeoutError:
            reason = (await self._reasons([wish]))[0]
            raise PlacingError(f"the resources were not there within {placement.timeout:g} s: {reason}") from None
        except LeaseError as error:
            raise PlacingError(str(error)) from None
        finally:
            self._waiting.pop(token, None)
            for proc in procs:
                proc.waits_for = None

    def release(self, token: str, reusable: bool) -> None:
        """Return a lease. Nothing where there is none."""
        self._leases.release(token, reusable)

    async def node(self, node_id: str) -> Node:
        """One that Ray has just chosen. Raises `PlacingError` if it has been lost since."""
        node = await self._nodes.find(node_id)
        if node is None:
            raise PlacingError(f"node {node_id} was lost before the launch came there")
        return node

    async def spread(self, placement: Placement, count: int, strategy: str) -> tuple[str, ...]:
        """Ids of the nodes for so many groups of procs that hold nothing. Raises `PlacingError`."""
        try:
            await self._nodes.wait_for(placement, self._load)
        except (NoSuchNodeError, NoFittingNodeError) as error:
            raise PlacingError(str(error)) from None
        nodes = [
            node.node_id for node in sorted(self._nodes.suiting(placement), key=lambda node: self._load(node.node_id))
        ]
        if strategy == "STRICT_SPREAD" and len(nodes) < count:
            raise PlacingError(f"STRICT_SPREAD needs {count} nodes, and {len(nodes)} fit")
        if strategy in ("PACK", "STRICT_PACK"):
            return (nodes[0],) * count
        return tuple(itertools.islice(itertools.cycle(nodes), count))

    def _wait(self, token: str, wish: Wish, procs: Collection[Proc]) -> None:
        self._waiting[token] = wish, procs
        if self._explaining is None or self._explaining.done():
            self._explaining = asyncio.ensure_future(self._keep_explaining())

    async def _keep_explaining(self) -> None:
        while self._waiting:
            waiting = dict(self._waiting)
            reasons = await self._reasons([wish for wish, _ in waiting.values()])
            for (token, (_, procs)), reason in zip(waiting.items(), reasons, strict=True):
                for proc in procs if token in self._waiting else ():
                    proc.waits_for = reason
            await asyncio.sleep(_LOOK)

    async def _reasons(self, wishes: Iterable[Wish]) -> list[str]:
        nodes = await asyncio.get_running_loop().run_in_executor(None, capacities)
        return [why(wish, nodes, self._holders) for wish in wishes]


def _say(proc: Proc, placement: Placement) -> None:
    """It waits for a node, whether or not it wants to hold anything there."""
    if proc.waits_for is None and placement.label_selector:
        proc.waits_for = f"needs a node with the labels {dict(placement.label_selector)}"
