"""Which node a proc goes to: the nodes that Ray knows, refreshed as launches ask, and the choice among them."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_launcher.options import Placement

#: Seconds for which a list of nodes serves further launches, while a new one is fetched beside them.
FRESH = 1.0
#: Seconds after which a list is too old to choose from at all.
STALE = 2.0


class NoSuchNodeError(Exception):
    """The placement names a node that the cluster does not have; the text lists those it has."""


class NoFittingNodeError(Exception):
    """No node fitted within the placement's timeout."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A living node of the cluster."""

    node_id: str
    ip: str
    labels: Mapping[str, str]
    cpus: float

    def __str__(self) -> str:
        return f"{self.node_id} ({self.ip})"


class Nodes:
    """The cluster's nodes as the spawner sees them. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        fetch: Callable[[], list[Node]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch or living_nodes
        self._clock = clock
        self._nodes: dict[str, Node] = {}
        self._gone: set[str] = set()
        self._fetched = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    def pick(self, placement: Placement, load: Callable[[str], float]) -> Node | None:
        """The least loaded node that fits, from the list at hand; None when that is stale, or none is in contact."""
        node = self._best(placement, load)
        return None if node is None or load(node.node_id) == math.inf else node

    def _best(self, placement: Placement, load: Callable[[str], float]) -> Node | None:
        age = self._clock() - self._fetched
        if age > FRESH:
            self._refresh()
        if age > STALE:
            return None
        return min(self.suiting(placement), key=lambda node: load(node.node_id), default=None)

    async def wait_for(self, placement: Placement, load: Callable[[str], float]) -> Node:
        """As `pick`, but waits for a node: an autoscaler may bring one, and one that is out of contact may come back.

        Raises `NoSuchNodeError` for an unknown node_id, `NoFittingNodeError` after `placement.timeout` seconds.
        """
        deadline = float("inf") if placement.timeout is None else self._clock() + placement.timeout
        while True:
            await asyncio.shield(self._refresh())  # others wait for it too
            node = self.pick(placement, load)
            if node is not None:
                return node
            if self._best(placement, load) is None:  # else it is out of contact: it comes back, or is lost
                self._check_named(placement)
            if self._clock() >= deadline:
                wanted = dict(placement.label_selector)
                what = f"node with the labels {wanted}" if wanted else "node in contact"
                raise NoFittingNodeError(f"no {what} within {placement.timeout:g} s")
            await asyncio.sleep(min(FRESH / 2, max(0.0, deadline - self._clock())))

    async def likely(self, placement: Placement, load: Callable[[str], float]) -> Node:
        """A node that suits `placement` but perhaps for its resources, or any. Raises as `wait_for`."""
        while True:
            node = self._best(placement, load)
            if node is None:
                await asyncio.shield(self._refresh())
                node = self._best(placement, load)
            if node is None:
                self._check_named(placement)
                node = self._best(Placement(), load)
            if node is not None:
                return node

    def _check_named(self, placement: Placement) -> None:
        """A node that the placement names fits now or never: ids are not used again, labels do not change."""
        if placement.node_id is None:
            return
        if placement.node_id not in self._nodes:
            known = ", ".join(map(str, self._nodes.values())) or "none"
            raise NoSuchNodeError(f"no living node has the id {placement.node_id!r}; the cluster's nodes are {known}")
        wanted, has = dict(placement.label_selector), dict(self._nodes[placement.node_id].labels)
        raise NoFittingNodeError(f"node {placement.node_id} has the labels {has}, not {wanted}")

    async def find(self, node_id: str) -> Node | None:
        """The node of this id, which Ray has just named; None: it has been lost since."""
        if node_id not in self._nodes:
            await asyncio.shield(self._refresh())
        return self._nodes.get(node_id)

    def lose(self, node_id: str, *, for_good: bool = False) -> None:
        """The node did not answer: it is not chosen again before Ray has been asked whether it lives.

        for_good: its raylet has gone, whatever Ray knows of that; ids are not used again.
        """
        self._nodes.pop(node_id, None)
        if for_good:
            self._gone.add(node_id)

    def suiting(self, placement: Placement) -> list[Node]:
        """Those of the list at hand to which a proc may go."""
        nodes = fitting(placement, self._nodes.values())
        # A head node is often given no CPUs to keep work away from it: procs stay away too while they can.
        return [node for node in nodes if node.cpus > 0] or nodes

    def _refresh(self) -> asyncio.Task[None]:
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch_once())
        return self._fetching

    async def _fetch_once(self) -> None:
        found = await asyncio.get_running_loop().run_in_executor(None, self._fetch)
        self._nodes = {node.node_id: node for node in found if node.node_id not in self._gone}
        self._fetched = self._clock()


def living_nodes() -> list[Node]:
    """Ask Ray. Blocks for a few milliseconds."""
    return [node_of(facts) for facts in ray.nodes() if facts["Alive"]]  # type: ignore[no-untyped-call]


def node_of(facts: Mapping[str, Any]) -> Node:
    """From an entry of `ray.nodes()`."""
    cpus = facts["Resources"].get("CPU", 0.0)
    return Node(facts["NodeID"], facts["NodeManagerAddress"], facts.get("Labels") or {}, cpus)


def is_alive(node: Node) -> bool:
    """Whether Ray takes the node for alive. Blocks for a few milliseconds."""
    return any(each.node_id == node.node_id for each in living_nodes())


def on_node(node: Node, soft: bool = False) -> dict[str, Any]:
    """Actor options that put an actor there; soft: elsewhere if the node is gone.

    An actor that asks for nothing is placed by a node that Ray chooses at random (measured with 2.60): one that does
    not know the others yet puts it elsewhere, and one that is cut off keeps it waiting for a minute. An actor that asks
    for anything is placed by its creator's node, so ours ask for a trace of what every node has for its address.
    """
    return {
        "resources": {f"node:{node.ip}": 0.0001},
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node.node_id, soft=soft),
    }


def fitting(placement: Placement, nodes: Iterable[Node]) -> list[Node]:
    """Those to which the placement allows a proc to go."""
    nodes = list(nodes)
    if placement.node_id is not None:
        nodes = [node for node in nodes if node.node_id == placement.node_id]
    if placement.label_selector:
        nodes = [node for node in nodes if labels_match(placement.label_selector, node.labels)]
    return nodes


def labels_match(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Ray's label selectors: `value`, `!value`, `in(a,b)`, `!in(a,b)`; all must hold.

    Source: https://docs.ray.io/en/latest/ray-core/scheduling/labels.html. A missing label satisfies only a negation.
    """
    return all(_condition_holds(condition, labels.get(name)) for name, condition in selector.items())


def _condition_holds(condition: str, value: str | None) -> bool:
    negated = condition.startswith("!")
    operand = condition[1:] if negated else condition
    wanted = operand[3:-1].split(",") if operand.startswith("in(") and operand.endswith(")") else [operand]
    return (value in {item.strip() for item in wanted}) != negated
