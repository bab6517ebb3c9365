"""The list of nodes that placements are chosen from, with a clock and a cluster of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from ray_launcher import Placement
from ray_launcher.cluster import nodes as module
from ray_launcher.cluster.nodes import FRESH, STALE, Node, Nodes, NoFittingNodeError, NoSuchNodeError, labels_match

_T = TypeVar("_T")

ANY = Placement()


class World:
    """What the cluster has, and the time."""

    def __init__(self, *names: str, cpus: float = 1) -> None:
        self.nodes = [Node(name, "192.0.2.1", {"name": name}, cpus) for name in names]
        self.now = 0.0
        self.fetched = 0
        self.tick = 0.0  # seconds that a fetch takes
        self.list = Nodes(self.fetch, lambda: self.now)
        self.loads: dict[str, float] = {}

    def fetch(self) -> list[Node]:
        self.fetched += 1
        self.now += self.tick
        return list(self.nodes)

    def pick(self, placement: Placement = ANY) -> str | None:
        node = self.list.pick(placement, self.load)
        return None if node is None else node.node_id

    async def wait_for(self, placement: Placement = ANY) -> str:
        return (await self.list.wait_for(placement, self.load)).node_id

    def load(self, node_id: str) -> float:
        return self.loads.get(node_id, 0)

    async def refreshed(self) -> None:
        """The refresh that a pick has begun is over."""
        assert self.list._fetching is not None
        await self.list._fetching


def run(scenario: Callable[[], Awaitable[_T]]) -> _T:
    async def bounded() -> _T:
        return await asyncio.wait_for(scenario(), 20)

    return asyncio.run(bounded())


def test_the_first_choice_waits_for_the_list() -> None:
    world = World("one")

    async def scenario() -> None:
        assert world.pick() is None
        assert await world.wait_for() == "one"
        assert world.pick() == "one"

    run(scenario)
    assert world.fetched == 1


def test_a_list_serves_while_it_is_fresh_and_then_while_the_next_is_fetched() -> None:
    world = World("one")

    async def scenario() -> None:
        await world.wait_for()
        world.nodes = World("two").nodes
        world.now += FRESH
        assert world.pick() == "one"
        assert world.fetched == 1
        world.now += 0.1
        assert world.pick() == "one"
        await world.refreshed()
        assert world.pick() == "two"

    run(scenario)
    assert world.fetched == 2


def test_a_stale_list_does_not_serve() -> None:
    world = World("one")

    async def scenario() -> None:
        await world.wait_for()
        world.now += STALE + 0.1
        assert world.pick() is None
        assert await world.wait_for() == "one"

    run(scenario)


def test_the_least_loaded_node_is_chosen() -> None:
    world = World("one", "two", "three")
    world.loads = {"one": 2, "two": 1, "three": 2}
    assert run(world.wait_for) == "two"


def test_a_node_without_cpus_is_chosen_only_where_no_other_fits() -> None:
    world = World("one")
    world.nodes += World("head", cpus=0).nodes
    world.loads = {"one": 100}

    async def scenario() -> None:
        assert await world.wait_for() == "one"
        assert world.pick(Placement(node_id="head")) == "head"
        assert world.pick(Placement(label_selector={"name": "!one"})) == "head"

    run(scenario)


def test_a_lost_node_is_not_chosen_until_the_cluster_has_been_asked() -> None:
    world = World("one", "two")

    async def scenario() -> None:
        await world.wait_for()
        world.list.lose("one")
        assert world.pick() == "two"
        assert world.pick(Placement(node_id="one")) is None
        assert await world.wait_for(Placement(node_id="one")) == "one"

    run(scenario)


def test_an_unknown_id_is_refused_with_the_ids_there_are() -> None:
    with pytest.raises(NoSuchNodeError, match=r"no living node has the id 'three'; .*one \(192\.0\.2\.1\), two "):
        run(lambda: World("one", "two").wait_for(Placement(node_id="three")))


def test_an_empty_cluster_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH", 0.001)
    world = World()
    fetch = world.list._fetch
    world.list._fetch = lambda: fetch() if world.fetched < 2 else [world.fetch(), World("late").nodes][1]

    async def scenario() -> str:
        return await world.wait_for()

    assert run(scenario) == "late"
    assert world.fetched == 3


@pytest.mark.parametrize("timeout, fetches", [(0.0, 1), (2.0, 3)])
def test_labels_are_waited_for_until_the_timeout(monkeypatch: pytest.MonkeyPatch, timeout: float, fetches: int) -> None:
    monkeypatch.setattr(module, "FRESH", 0.001)
    world = World("one")
    world.tick = 1.0
    at = Placement(label_selector={"name": "two"}, timeout=timeout)
    with pytest.raises(NoFittingNodeError, match=rf"no node with the labels {{'name': 'two'}} within {timeout:g} s"):
        run(lambda: world.wait_for(at))
    assert world.fetched in (fetches, max(1, fetches - 1))


def test_a_fetch_that_fails_is_told_and_tried_again() -> None:
    world = World("one")
    fetch = world.list._fetch

    def fail() -> list[Node]:
        raise ConnectionError("no answer")

    async def scenario() -> None:
        world.list._fetch = fail
        with pytest.raises(ConnectionError):
            await world.wait_for()
        world.list._fetch = fetch
        assert await world.wait_for() == "one"

    run(scenario)


@pytest.mark.parametrize(
    "condition, one, two, none",
    [
        ("one", True, False, False),
        ("!one", False, True, True),
        ("in(one)", True, False, False),
        ("in(one,two)", True, True, False),
        ("in( one , two )", True, True, False),
        ("!in(one,three)", False, True, True),
        ("", False, False, False),
        ("!", True, True, True),
    ],
)
def test_a_missing_label_satisfies_only_a_negation(condition: str, one: bool, two: bool, none: bool) -> None:
    selector = {"name": condition}
    found = [labels_match(selector, labels) for labels in ({"name": "one"}, {"name": "two"}, {})]
    assert found == [one, two, none]


def test_all_labels_must_match() -> None:
    assert labels_match({"a": "1", "b": "!2"}, {"a": "1", "b": "1"})
    assert not labels_match({"a": "1", "b": "!2"}, {"a": "1", "b": "2"})
    assert labels_match({}, {})


def test_one_who_stops_waiting_does_not_stop_the_others() -> None:
    world = World("one")

    async def scenario() -> str:
        first, second = (asyncio.ensure_future(world.wait_for()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert run(scenario) == "one"


OUT_OF_CONTACT = float("inf")


@pytest.mark.parametrize("placement", [ANY, Placement(node_id="one")])
def test_a_node_that_is_out_of_contact_is_waited_for(monkeypatch: pytest.MonkeyPatch, placement: Placement) -> None:
    monkeypatch.setattr(module, "FRESH", 0.001)
    world = World("one")
    world.loads = {"one": OUT_OF_CONTACT}

    async def scenario() -> str:
        waiting = asyncio.ensure_future(world.wait_for(placement))
        while world.fetched < 3:  # noqa: ASYNC110  # it has looked more than once
            await asyncio.sleep(0)
        assert not waiting.done()
        world.loads["one"] = 5
        return await waiting

    world.now = 1.0
    world.tick = 1.0
    assert run(scenario) == "one"


def test_a_node_that_stays_out_of_contact_is_waited_for_until_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH", 0.001)
    world = World("one")
    world.loads, world.tick = {"one": OUT_OF_CONTACT}, 1.0
    with pytest.raises(NoFittingNodeError, match="no node in contact within 2 s"):
        run(lambda: world.wait_for(Placement(node_id="one", timeout=2)))
