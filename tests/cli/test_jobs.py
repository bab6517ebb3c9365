"""Nodes by their addresses."""

from __future__ import annotations

import pytest
import ray

from ray_launcher import LaunchOptions, Placement
from ray_launcher.cli.connect import ConnectError
from ray_launcher.cli.gangs import Shape
from ray_launcher.cli.jobs import AGang, Job, Several

NODES = [("aa", "10.0.0.1", True), ("bb", "10.0.0.2", True), ("cc", "10.0.0.2", True), ("dd", "10.0.0.4", False)]
NODES += [("ee", "fd00::5", True)]


@pytest.fixture(autouse=True)
def _cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [{"NodeID": node, "NodeManagerAddress": address, "Alive": alive} for node, address, alive in NODES]
    monkeypatch.setattr(ray, "nodes", lambda: facts)


def on(node: str | None) -> LaunchOptions:
    return LaunchOptions(program="x", placement=Placement(node_id=node, num_cpus=1))


@pytest.mark.parametrize(
    "given, meant", [(None, None), ("ab12", "ab12"), ("10.0.0.1", "aa"), ("fd00::5", "ee"), ("fd00:0:0::5", "ee")]
)
def test_an_address_becomes_the_id_of_its_node_and_an_id_stays(given: str | None, meant: str | None) -> None:
    several = Several("a", {"a": on(given), "b": on(given)})
    gang = AGang("g", Shape(1, 2), on(given), 1)
    for job in (several, gang):
        job.settle()
    assert [*several.launches.values(), gang.options] == [on(meant)] * 3


@pytest.mark.parametrize(
    "given, told",
    [
        ("10.0.0.2", "2 nodes have the address 10.0.0.2; give one's id: bb, cc"),
        ("10.0.0.4", "no living node has the address 10.0.0.4; the cluster's nodes are aa (10.0.0.1), bb (10.0.0.2)"),
    ],
)
def test_an_address_of_several_nodes_or_of_none_is_answered_with_the_ids(given: str, told: str) -> None:
    jobs: list[Job] = [Several("a", {"a": on(given)}), AGang("g", Shape(1, 2), on(given), 1)]
    for job in jobs:
        with pytest.raises(ConnectError) as raised:
            job.settle()
        assert told in str(raised.value)
