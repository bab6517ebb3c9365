"""One lease: cluster resources that are held for a proc or a gang, as a Ray placement group.

A placement group costs no Ray worker and a few milliseconds. Ours are detached, so that they outlive their spawner, and
are found by their names; where the session ends without its spawner, the agents return them (`return_all`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import ray
from ray import PlacementGroupID
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_launcher.cluster import accelerators
from ray_launcher.options import Placement

#: Seconds between two looks at a lease that waits: the first, and the longest.
_LOOKS = (0.005, 0.1)
#: The label that Ray gives every node.
_NODE_ID = "ray.io/node-id"
#: States of a placement group in which all its bundles have a node.
_PLACED = "CREATED"
_GONE = "REMOVED"
#: States of its scheduling in which Ray has tried, and not found a place.
_REFUSED = ("NO_RESOURCES", "INFEASIBLE", "FAILED_TO_COMMIT_RESOURCES")


#: Runs a blocking call in a thread.
Run: TypeAlias = Callable[..., Awaitable[Any]]


class LeaseError(Exception):
    """The resources cannot be had; the text says why."""


class LeaseTimeoutError(LeaseError):
    """They have not been there in time."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a lease should hold: one or more bundles, all or nothing.

    bundles: resource name to quantity, each.  labels: a label selector per bundle.  strategy: Ray's word.
    """

    bundles: tuple[dict[str, float], ...]
    labels: tuple[dict[str, str], ...]
    strategy: str = "PACK"


def wish_of(placement: Placement) -> Wish | None:
    """The lease of a single proc; None: it needs none."""
    bundle = bundle_of(placement)
    return Wish((bundle,), (selector_of(placement),)) if bundle else None


def bundle_of(placement: Placement) -> dict[str, float]:
    """What one proc needs, by Ray's names."""
    named = {"CPU": placement.num_cpus, "GPU": placement.num_gpus, "memory": placement.memory}
    return {name: quantity for name, quantity in {**named, **placement.resources}.items() if quantity}


def selector_of(placement: Placement) -> dict[str, str]:
    """Which nodes will do."""
    node = {} if placement.node_id is None else {_NODE_ID: placement.node_id}
    return {**placement.label_selector, **node}


class Lease:
    """One placement group from when it is asked for until it is returned."""

    def __init__(self, name: str, wish: Wish, group: PlacementGroup) -> None:
        self.name, self.wish = name, wish
        self.nodes: tuple[str, ...] = ()
        self.accelerators: tuple[dict[str, list[str]], ...] = ()
        self._group = group

    @property
    def filled(self) -> bool:
        """Whether all of it is there: per bundle, the node's id, and ids of accelerators by resource name."""
        return bool(self.accelerators)

    async def fill(self, run: Run, timeout: float | None, on_wait: Callable[[], None]) -> None:
        """Wait for all of it: see `Leases.hold`."""
        self.nodes = await self._placed(run, timeout, on_wait)
        probes = (self._accelerators(index, bundle) for index, bundle in enumerate(self.wish.bundles))
        self.accelerators = tuple(await asyncio.gather(*probes))

    def give_back(self) -> None:
        """Return it to Ray. Blocks for a moment."""
        remove_placement_group(self._group)

    async def _placed(self, run: Run, timeout: float | None, on_wait: Callable[[], None]) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        deadline = float("inf") if timeout is None else loop.time() + timeout
        pause, longest = _LOOKS
        while True:
            facts = await run(placement_group_table, self._group)
            if facts.get("state") == _PLACED:
                nodes: dict[int, str] = facts["bundles_to_node_id"]
                return tuple(nodes[index] for index in sorted(nodes))
            if facts.get("state", _GONE) == _GONE:
                raise LeaseError("its placement group was removed by somebody else")
            if facts["stats"]["scheduling_state"] in _REFUSED:
                on_wait()
                if loop.time() >= deadline:
                    raise LeaseTimeoutError
            await asyncio.sleep(min(pause, max(_LOOKS[0], deadline - loop.time())))
            pause = min(longest, 2 * pause)

    async def _accelerators(self, index: int, bundle: dict[str, float]) -> dict[str, list[str]]:
        """Ray fixes the ids when a bundle gets its node, and tells them only to a task in it."""
        asked = {name: bundle[name] for name in accelerators.kinds() if bundle.get(name)}
        if not asked:
            return {}
        gpus = asked.pop("GPU", 0)
        probe: Any = ray.remote(accelerators.assigned_here).options(
            num_cpus=0,
            num_gpus=gpus,
            resources=asked,
            max_retries=3,
            enable_task_events=False,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index),
        )
        try:
            ids: dict[str, list[str]] = await probe.remote()
        except RayError as error:
            raise LeaseError(f"cannot learn which accelerators were assigned: {error}") from error
        return ids


def ask(session: str, wish: Wish) -> Lease:
    """A new lease, still empty. Raises what Ray has against the wish. Blocks for a moment."""
    name = uuid.uuid4().hex
    group: PlacementGroup = placement_group(
        [dict(bundle) for bundle in wish.bundles],
        strategy=wish.strategy,
        name=_prefix(session) + name,
        lifetime="detached",
        bundle_label_selector=[dict(labels) for labels in wish.labels],
    )
    return Lease(name, wish, group)


def leases_of(session: str) -> list[Lease]:
    """All that the session has. Nothing is known of their wishes, so they can only be given back. Blocks."""
    return [Lease(name, Wish((), ()), group) for name, (_, group) in _groups(session).items()]


def return_all(session: str, spared: Iterable[str] = ()) -> None:
    """Return the session's leases, save those on nodes of these ids, where procs may still be ending."""
    spared = set(spared)
    for facts, group in _groups(session).values():
        if spared.isdisjoint(facts["bundles_to_node_id"].values()):
            remove_placement_group(group)


def _groups(session: str) -> dict[str, tuple[dict[str, Any], PlacementGroup]]:
    """By the lease's name: what Ray knows of it, and its handle."""
    prefix = _prefix(session)
    found = {}
    for group_id, facts in placement_group_table().items():
        if facts["name"].startswith(prefix) and facts["state"] != _GONE:
            group = PlacementGroup(PlacementGroupID(bytes.fromhex(group_id)))
            found[facts["name"].removeprefix(prefix)] = facts, group
    return found


def _prefix(session: str) -> str:
    return f"ray-launcher/{session}/"
