"""Why a lease is still waited for, in words: what it needs, what the best node has, and who holds the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import ray

from ray_launcher.cluster.lease import Wish
from ray_launcher.cluster.nodes import Node, labels_match, node_of

#: Names of holders in one reason; the rest are counted.
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Capacity:
    """A node's resources: what there is, and what of it is free."""

    node: Node
    total: Mapping[str, float]
    free: Mapping[str, float]


def capacities() -> list[Capacity]:
    """Of every living node. Blocks for a few milliseconds."""
    from ray._private.state import available_resources_per_node  # noqa: PLC0415  # the public one adds all nodes up

    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    return [
        Capacity(node_of(facts), facts["Resources"], free.get(facts["NodeID"], {}))
        for facts in ray.nodes()  # type: ignore[no-untyped-call]
        if facts["Alive"]
    ]


def why(wish: Wish, nodes: Iterable[Capacity], holders: Callable[[str], list[str]]) -> str:
    """The reason in words. holders: names of the procs that hold resources on the node of this id.

    The bundles of a wish are alike.
    """
    needs, selector, count = wish.bundles[0], wish.labels[0], len(wish.bundles)
    nodes = [each for each in nodes if _matches(selector, each)]
    if count == 1:
        return _why(needs, nodes, selector, holders)
    room = sum(_room(needs, each.total, wish.strategy) for each in nodes)
    free = sum(_room(needs, each.free, wish.strategy) for each in nodes)
    alone = ", each on a node of its own" if wish.strategy == "STRICT_SPREAD" else ""
    alone = ", all on one node" if wish.strategy == "STRICT_PACK" else alone
    wanted = f"{_wanted(needs)} {count} times at once{alone}"
    if wish.strategy == "STRICT_PACK":
        room = max((_room(needs, each.total, "") for each in nodes), default=0)
        free = max((_room(needs, each.free, "") for each in nodes), default=0)
    if room == 0 or free == 0:
        return f"{wanted}: {_why(needs, nodes, selector, holders)}"
    if room < count:
        return f"{wanted}; the cluster has room for no more than {room}"
    return f"{wanted}; there is room for {free} now"


def _room(needs: Mapping[str, float], has: Mapping[str, float], strategy: str) -> int:
    """How many bundles go on a node."""
    room = min(int((has.get(name, 0) + 1e-9) / quantity) for name, quantity in needs.items())
    return min(room, 1) if strategy == "STRICT_SPREAD" else room


def _wanted(needs: Mapping[str, float]) -> str:
    return "needs " + ", ".join(f"{name} {_amount(name, quantity)}" for name, quantity in needs.items())


def _why(
    needs: Mapping[str, float], nodes: list[Capacity], selector: Mapping[str, str], holders: Callable[[str], list[str]]
) -> str:
    wanted = _wanted(needs)
    if not nodes:
        return f"{wanted} on a node with the labels {dict(selector)}; no node has them"
    large = [each for each in nodes if not _lacking(needs, each.total)]
    if not large:
        best = min(nodes, key=lambda each: _shortage(needs, each.total))
        has = ", ".join(f"{_amount(name, best.total.get(name, 0))} {name}" for name in _lacking(needs, best.total))
        return f"{wanted}; no node is that large: the largest, {best.node.ip}, has {has}"
    best = min(large, key=lambda each: _shortage(needs, each.free))
    short = _lacking(needs, best.free)
    if not short:
        return f"{wanted}; node {best.node.ip} has that much free: on its way"
    has = ", ".join(
        f"{_amount(name, best.free.get(name, 0))} of {_amount(name, best.total[name])} {name} free" for name in short
    )
    return f"{wanted}; best node {best.node.ip} has {has}; held by {_listed(holders(best.node.node_id))}"


def _matches(selector: Mapping[str, str], capacity: Capacity) -> bool:
    return labels_match(selector, {**capacity.node.labels, "ray.io/node-id": capacity.node.node_id})


def _lacking(needs: Mapping[str, float], has: Mapping[str, float]) -> list[str]:
    return [name for name, quantity in needs.items() if has.get(name, 0) < quantity - 1e-9]


def _shortage(needs: Mapping[str, float], has: Mapping[str, float]) -> float:
    """How much of what is needed is not there: each kind counts as a share of its own."""
    return sum(max(0.0, 1 - has.get(name, 0) / quantity) for name, quantity in needs.items())


def _amount(name: str, quantity: float) -> str:
    if name == "memory":
        return f"{quantity / 2**30:.1f} GiB"
    return f"{quantity:.4f}".rstrip("0").rstrip(".")


def _listed(holders: list[str]) -> str:
    if not holders:
        return "others on the cluster"
    more = len(holders) - _NAMED
    return ", ".join(holders[:_NAMED]) + (f" and {more} more" if more > 0 else "")
