"""Leases: cluster resources that are held for a proc or a gang, as a Ray placement group, exactly as long as it lives.

A placement group costs no Ray worker and a few milliseconds. Ours are detached, so that a spawner that is started again
finds them by their names; where the session ends without its spawner, the agents return them (`return_all`).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_launcher.cluster import accelerators
from ray_launcher.cluster.wire import token_of
from ray_launcher.desk import LaunchKey
from ray_launcher.options import Placement

#: Seconds between two looks at a lease that waits: the first, and the longest.
_LOOKS = (0.005, 0.1)
#: The label that Ray gives every node.
_NODE_ID = "ray.io/node-id"
#: States of a placement group in which all its bundles have a node.
_PLACED = "CREATED"
_GONE = "REMOVED"


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


@dataclasses.dataclass(frozen=True)
class Held:
    """What a lease holds. Per bundle: the node's id, and ids of accelerators by resource name."""

    nodes: tuple[str, ...]
    accelerators: tuple[dict[str, list[str]], ...]


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


class Leases:
    """The leases of one session, by the launch that each is for. again: the spawner may have had some before."""

    def __init__(self, session: str, again: bool) -> None:
        self._session = session
        self._asked: dict[LaunchKey, asyncio.Future[PlacementGroup]] = {}
        self._keys: dict[str, LaunchKey] = {}  # the same, by the launch's token
        self._thread = ThreadPoolExecutor(1, "leases")  # one: what is asked for after a removal comes after it
        self._recovery = asyncio.ensure_future(self._recover()) if again else None

    async def hold(self, key: LaunchKey, wish: Wish, timeout: float | None, on_wait: Callable[[], None]) -> Held:
        """Wait for the lease of this launch, new or that of before. Raises `LeaseError`.

        timeout: in seconds, after the first look.  on_wait: called whenever the resources are found not to be there
        yet. Whatever becomes of the call, `release` ends the lease.
        """
        await self.recovered()
        if key not in self._asked:
            name = f"{_prefix(self._session)}{key[0]}/{key[1]}"
            self._add(key, asyncio.ensure_future(self._run(_create, name, wish)))
        try:
            group = await asyncio.shield(self._asked[key])
        except Exception as error:
            raise LeaseError(f"Ray refuses the resources: {error}") from error
        nodes = await self._placed(group, timeout, on_wait)
        probes = (self._accelerators(group, index, bundle) for index, bundle in enumerate(wish.bundles))
        return Held(nodes, tuple(await asyncio.gather(*probes)))

    def release(self, key: LaunchKey) -> None:
        """Return a lease, held or waited for. Nothing for a launch that has none."""
        asked = self._asked.pop(key, None)
        if asked is not None:
            del self._keys[token_of(key)]
            asked.add_done_callback(self._remove)

    def end(self, token: str) -> None:
        """As `release`, by the launch's token."""
        if token in self._keys:
            self.release(self._keys[token])

    def _add(self, key: LaunchKey, asked: asyncio.Future[PlacementGroup]) -> None:
        self._asked[key], self._keys[token_of(key)] = asked, key

    def _remove(self, asked: asyncio.Future[PlacementGroup]) -> None:
        if asked.exception() is None:
            self._thread.submit(remove_placement_group, asked.result())

    @property
    def keys(self) -> AbstractSet[LaunchKey]:
        """The launches that have one, or wait for it."""
        return self._asked.keys()

    async def recovered(self) -> None:
        """Return when what an earlier spawner had is known."""
        if self._recovery is not None:
            await asyncio.shield(self._recovery)

    async def _recover(self) -> None:
        for key, (_, group) in (await self._run(_groups, self._session)).items():
            found: asyncio.Future[PlacementGroup] = asyncio.get_running_loop().create_future()
            found.set_result(group)
            self._add(key, found)

    async def all_returned(self) -> None:
        """Return when Ray knows of everything that was released until now."""
        await asyncio.sleep(0)  # for what is called soon
        await self._run(lambda: None)

    async def _placed(
        self, group: PlacementGroup, timeout: float | None, on_wait: Callable[[], None]
    ) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        deadline = float("inf") if timeout is None else loop.time() + timeout
        pause, longest = _LOOKS
        while True:
            facts = await self._run(placement_group_table, group)
            if facts.get("state") == _PLACED:
                nodes: dict[int, str] = facts["bundles_to_node_id"]
                return tuple(nodes[index] for index in sorted(nodes))
            if facts.get("state", _GONE) == _GONE:
                raise LeaseError("its placement group was removed by somebody else")
            on_wait()
            if loop.time() >= deadline:
                raise LeaseTimeoutError
            await asyncio.sleep(min(pause, deadline - loop.time()))
            pause = min(longest, 2 * pause)

    async def _accelerators(self, group: PlacementGroup, index: int, bundle: dict[str, float]) -> dict[str, list[str]]:
        """Ray fixes the ids when a bundle gets its node, and tells them only to a task in it."""
        asked = {name: bundle[name] for name in accelerators.kinds() if bundle.get(name)}
        if not asked:
            return {}
        gpus = asked.pop("GPU", 0)
        probe: Any = ray.remote(accelerators.assigned_here).options(
            num_cpus=0,
            num_gpus=gpus,
            resources=asked,
            max_retries=-1,
            enable_task_events=False,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        )
        ids: dict[str, list[str]] = await probe.remote()
        return ids

    async def _run(self, call: Callable[..., Any], *args: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


def return_all(session: str, spared: Iterable[str] = ()) -> None:
    """Return the session's leases, save those on nodes of these ids, where procs may still be ending."""
    spared = set(spared)
    for facts, group in _groups(session).values():
        if spared.isdisjoint(facts["bundles_to_node_id"].values()):
            remove_placement_group(group)


def _create(name: str, wish: Wish) -> PlacementGroup:
    group: PlacementGroup = placement_group(
        [dict(bundle) for bundle in wish.bundles],
        strategy=wish.strategy,
        name=name,
        lifetime="detached",
        bundle_label_selector=[dict(labels) for labels in wish.labels],
    )
    return group


def _groups(session: str) -> dict[LaunchKey, tuple[dict[str, Any], PlacementGroup]]:
    """What Ray knows of each lease of the session, and its handle."""
    prefix = _prefix(session)
    found = {}
    for group_id, facts in placement_group_table().items():
        if facts["name"].startswith(prefix) and facts["state"] != _GONE:
            launcher, _, number = facts["name"].removeprefix(prefix).rpartition("/")
            found[launcher, int(number)] = facts, PlacementGroup(PlacementGroupID(bytes.fromhex(group_id)))
    return found


def _prefix(session: str) -> str:
    return f"ray-launcher/{session}/"
