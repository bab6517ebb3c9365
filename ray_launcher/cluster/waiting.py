"""Why a lease is still waited for, in words: what it needs, what the best node has, and who holds the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import ray

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


def why(
    bundles: Iterable[tuple[Mapping[str, float], Mapping[str, str]]],
    nodes: Iterable[Capacity],
    holders: Callable[[str], list[str]],
    spread: bool = False,
) -> str:
    """The reason for bundles, each (what it needs, its label selector); equal ones are named once.

    holders: the procs that hold resources on the node of this id.  spread: each bundle wants a node of its own.
    """
    nodes = list(nodes)
    counted: dict[str, int] = {}
    total = 0
    for needs, selector in bundles:
        total += 1
        text = _why(needs, [each for each in nodes if _matches(selector, each)], selector, holders)
        counted[text] = counted.get(text, 0) + 1
    texts = [text if total == 1 else f"{count} of {total} bundles: {text}" for text, count in counted.items()]
    if total > 1:
        texts.append("all of them are wanted at once" + (", on a node each" if spread else ""))
    return "; ".join(texts)


def _why(
    needs: Mapping[str, float], nodes: list[Capacity], selector: Mapping[str, str], holders: Callable[[str], list[str]]
) -> str:
    wanted = "needs " + ", ".join(f"{name} {_amount(name, quantity)}" for name, quantity in needs.items())
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
