"""Leftovers of sessions that are over: found on this machine and in the cluster, and reaped.

A session that has a spawner lives, and so does an agent, which sees to its own. First comes what might be left over,
then who is there: what is seen before an actor is not found had been told to that actor, which is gone since.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_list
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from ray_launcher import checks
from ray_launcher.cluster.actors import NAMESPACE, agent_actor, find, spawner_actor
from ray_launcher.cluster.environment import worker_env
from ray_launcher.cluster.nodes import Node, living_nodes, on_node
from ray_launcher.cluster.registry import NAMESPACE as KEYS
from ray_launcher.node import leftovers
from ray_launcher.node.leftovers import Found, Survey, session_of

#: Seconds that agents whose spawner has gone get to leave by themselves.
LEAVE = 20.0
#: Seconds between two looks whether they have.
_LOOK = 0.5
#: Seconds for a node to answer, and for it to end what there is.
_ANSWER, _END = 60.0, 60.0
_GROUPS = "ray-launcher/"
_GONE = "REMOVED"


@dataclasses.dataclass(frozen=True)
class Leftover:
    """One thing that nobody sees to any more.

    kind: supervisor (or its guard), proc, directory, agent (its actor), key (in Ray's store) or placement group.
    where: the address of the node; "" for this machine, and for what is the cluster's.  what: a pid and the program, a
    path, a name or an id.
    """

    session: str
    kind: str
    where: str
    what: str


@dataclasses.dataclass(frozen=True)
class _Item:
    """A leftover, and what it takes to end it: what it is there and on which machine, or a call."""

    left: Leftover
    found: Found | None = None
    machine: _Machine | None = None
    call: Callable[[], object] | None = None


class _Machine:
    """Where a survey can be made: this one (node is None, no name), or that of a node."""

    def __init__(self, node: Node | None) -> None:
        self.name, self.where = ("", "") if node is None else (node.node_id, node.ip)
        self._node = node

    def ask(self, call: Callable[..., Any], *args: object) -> Any:
        """A ref, or the answer where there is no need for one."""
        if self._node is None:
            return call(*args)
        options = {"num_cpus": 0, "max_retries": 0, "runtime_env": worker_env({}), **on_node(self._node)}
        return ray.remote(call).options(**options).remote(*args)


def find_leftovers(session: str | None = None, wait: float = LEAVE) -> list[Leftover]:
    """What sessions that are over have left on this machine and, if this process is connected, in the cluster.

    session: only of the one of that name.  wait: seconds that agents whose spawner has just gone get to leave by
    themselves. Nothing that lives is told, nor what belongs to another Ray on this machine that runs. Raises TypeError
    or ValueError for `wait`.
    """
    found = [item.left for item in _items(checks.seconds("wait", wait))]
    return [left for left in found if session in (None, left.session)]


def reap(wanted: Iterable[Leftover]) -> list[Leftover]:
    """End and remove these, if they still are leftovers; returns those that are left. Takes a minute at most."""
    chosen = set(wanted)
    items = [item for item in _items(0.0) if item.left in chosen]
    for item in items:
        if item.call is not None:
            item.call()
    ending = []
    for machine in {item.machine.name: item.machine for item in items if item.machine is not None}.values():
        found = [item.found for item in items if item.found is not None and item.machine is machine]
        agents = sorted({each.agent for each in found})
        directories = sorted({each.what for each in found if each.kind == "directory"})
        ending.append(machine.ask(leftovers.end, agents, directories))
    refs = [each for each in ending if each is not None]
    if refs:
        ray.wait(refs, num_returns=len(refs), timeout=_END)
    there = set(find_leftovers())
    return [item.left for item in items if item.left in there]


def _machines() -> list[_Machine]:
    return [_Machine(None), *(map(_Machine, living_nodes()) if ray.is_initialized() else ())]


def _surveys() -> list[tuple[_Machine, Survey]]:
    """Of one machine there is one. A node that does not answer is left out."""
    asked = [(machine, machine.ask(leftovers.survey)) for machine in _machines()]
    refs = [ref for _, ref in asked if not isinstance(ref, Survey)]
    if refs:
        ray.wait(refs, num_returns=len(refs), timeout=_ANSWER)
    surveys: dict[str, tuple[_Machine, Survey]] = {}
    for machine, ref in asked:
        try:
            made: Survey = ref if isinstance(ref, Survey) else ray.get(ref, timeout=0)
        except RayError:
            continue
        surveys.setdefault(made.machine, (machine, made))
    return list(surveys.values())


def _items(wait: float) -> list[_Item]:
    surveys = _surveys()
    connected = ray.is_initialized()
    keys = [bytes(key).decode() for key in _internal_kv_list(b"", namespace=KEYS)] if connected else []
    groups = _groups() if connected else {}
    sessions, agents = _wait_for_leaving(wait) if connected else (set[str](), set[str]())
    ours = {node.node_id[:16] for node in living_nodes()} if connected else set[str]()
    items = [
        _Item(Leftover(session_of(agent), "agent", "", agent_actor(agent)), call=partial(_kill, agent))
        for agent in sorted(agents)
        if session_of(agent) not in sessions
    ]
    for machine, made in surveys:
        for found in made.found:
            session = session_of(found.agent)
            if session not in sessions and _is_judged(found.agent, made, ours):
                what = f"{found.pid} {found.what}" if found.pid else found.what
                items.append(_Item(Leftover(session, found.kind, machine.where, what), found, machine))
    for key in keys:
        session = key.partition("/")[0]
        if session not in sessions:
            items.append(_Item(Leftover(session, "key", "", key), call=partial(_drop, key)))
    for group_id, name in groups.items():
        session = name.removeprefix(_GROUPS).partition("/")[0]
        if session not in sessions:
            left = Leftover(session, "placement group", "", group_id)
            items.append(_Item(left, call=partial(_remove, group_id)))
    return items


def _is_judged(agent: str, made: Survey, ours: set[str]) -> bool:
    """Whether we can tell if anybody sees to it: its node is one of ours, or there is no raylet of it any more."""
    node = leftovers.node_of(agent)
    return node in ours or (made.nodes is not None and node not in {each[:16] for each in made.nodes})


def _wait_for_leaving(wait: float) -> tuple[set[str], set[str]]:
    """The sessions that have a spawner, and the agents that there are, when those without have had time to leave."""
    give_up = time.monotonic() + wait
    while True:
        named: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)
        names = {actor["name"] for actor in named if actor["namespace"] == NAMESPACE}
        sessions = {name.removeprefix(spawner_actor("")) for name in names if name.startswith(spawner_actor(""))}
        agents = {name.removeprefix(agent_actor("")) for name in names if name.startswith(agent_actor(""))}
        if time.monotonic() >= give_up or all(session_of(agent) in sessions for agent in agents):
            return sessions, agents
        time.sleep(_LOOK)


def _groups() -> dict[str, str]:
    """Names of all placement groups of ours, by id."""
    table: dict[str, dict[str, Any]] = placement_group_table()
    return {
        group_id: facts["name"]
        for group_id, facts in table.items()
        if facts["name"].startswith(_GROUPS) and facts["state"] != _GONE
    }


def _kill(agent: str) -> None:
    actor = find(agent_actor(agent))
    if actor is not None:
        ray.kill(actor)


def _drop(key: str) -> None:
    _internal_kv_del(key.encode(), namespace=KEYS)


def _remove(group_id: str) -> None:
    remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))))
