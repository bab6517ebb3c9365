"""Which node a proc comes to: by load, by id, by labels; and what waits for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from node_rig import stat, until
from ray_rig import DEADLINE, Nodes, ended, procs_of, shell, supervisors_of

from ray_launcher import Failed, LaunchResult, Placement, RayProcLauncher

LATE = Placement(label_selector={"zone": "late"})


@pytest.fixture(autouse=True)
def _no_load(shared: RayProcLauncher) -> Iterator[None]:
    """Nothing runs after a test: the next one counts procs."""
    yield
    for proc_id in shared.active_procs:
        shared.kill(proc_id)
    until(lambda: not shared.active_procs, "all procs are gone", DEADLINE)


def zones(launcher: RayProcLauncher, nodes: Nodes, placement: Placement, count: int) -> Counter[str]:
    """How many of so many procs come to which zone."""
    procs = [launcher.launch(f"proc {n}", shell("echo $$; exec sleep 9999", placement)) for n in range(count)]
    for proc in procs:  # by the real process: whose child is it
        pid = int(next(launcher.logs(proc.proc_id, follow=True)))
        at = next(info.node_id for info in launcher.procs() if info.proc_id == proc.proc_id)
        assert int(stat(pid)[1]) in supervisors_of(f"{launcher.session}-{str(at)[:16]}")
    zone_of = {node_id: zone for zone, node_id in nodes.ids().items()}
    found = Counter(zone_of[str(info.node_id)] for info in launcher.procs() if info.proc_id in launcher.active_procs)
    for proc in procs:
        launcher.kill(proc.proc_id)
        ended(proc.exit_port)
    return found


def reason(proc: LaunchResult) -> str:
    kind = ended(proc.exit_port).kind
    assert isinstance(kind, Failed), kind
    return kind.reason


def test_procs_spread_and_keep_away_from_a_head_without_cpus(shared: RayProcLauncher, nodes: Nodes) -> None:
    assert zones(shared, nodes, Placement(), 4) == {"a": 2, "b": 2}


def test_the_first_launches_of_a_session_spread_too(launcher: RayProcLauncher, nodes: Nodes) -> None:
    procs = launcher.launch_many({f"proc {n}": shell("exit") for n in range(40)})
    assert all(ended(proc.exit_port).ok for proc in procs.values())
    zone_of = {node_id: zone for zone, node_id in nodes.ids().items()}
    assert Counter(zone_of[str(info.node_id)] for info in launcher.procs()) == {"a": 20, "b": 20}


@pytest.mark.parametrize("zone", ["head", "a", "b"])
def test_a_node_id_names_the_node(shared: RayProcLauncher, nodes: Nodes, zone: str) -> None:
    assert zones(shared, nodes, nodes.on(zone), 2) == {zone: 2}


@pytest.mark.parametrize(
    "selector, expected",
    [
        ({"zone": "b"}, {"b": 2}),
        ({"zone": "!a"}, {"b": 2}),
        ({"zone": "in(a, b)"}, {"a": 1, "b": 1}),
        ({"zone": "!in(a,b)"}, {"head": 2}),
        ({"disk": "!ssd-a"}, {"b": 2}),
        ({"disk": "!in(ssd-a,ssd-b)"}, {"head": 2}),
        ({"zone": "in(a,b)", "disk": "ssd-a"}, {"a": 2}),
    ],
)
def test_labels_select_nodes(
    shared: RayProcLauncher, nodes: Nodes, selector: dict[str, str], expected: dict[str, int]
) -> None:
    assert zones(shared, nodes, Placement(label_selector=selector), 2) == expected


def test_an_unknown_node_id_fails_and_lists_the_nodes(shared: RayProcLauncher, nodes: Nodes) -> None:
    text = reason(shared.launch("nowhere", shell("exit", Placement(node_id="ab" * 28))))
    assert text.startswith(f"no living node has the id '{'ab' * 28}'; the cluster's nodes are ")
    for node_id in nodes.ids().values():
        assert node_id in text


def test_a_named_node_with_other_labels_fails_at_once(shared: RayProcLauncher, nodes: Nodes) -> None:
    at = Placement(node_id=nodes.ids()["a"], label_selector={"disk": "ssd-b"})
    text = reason(shared.launch("nowhere", shell("exit", at)))
    assert f"node {at.node_id} has the labels" in text
    assert "not {'disk': 'ssd-b'}" in text


def test_labels_that_do_not_come_in_time_fail(shared: RayProcLauncher) -> None:
    at = Placement(label_selector={"zone": "nowhere"}, timeout=0.2)
    text = reason(shared.launch("nowhere", shell("exit", at)))
    assert text == "no node with the labels {'zone': 'nowhere'} within 0.2 s"


@pytest.mark.parametrize(
    "end", [lambda launcher: launcher.kill("waits"), lambda launcher: launcher.terminate("waits", 9)]
)
def test_what_is_ended_while_it_waits_for_labels_fails_and_frees_its_id(
    shared: RayProcLauncher, end: Callable[[RayProcLauncher], None]
) -> None:
    proc = shared.launch("waits", shell("exit", LATE))
    end(shared)
    assert reason(proc) == "ended on request before it was started"
    assert ended(shared.launch("waits", shell("exit")).exit_port).ok


def test_a_node_that_joins_is_used_by_those_who_wait_and_by_nobody_who_was_ended(
    shared: RayProcLauncher, launcher: RayProcLauncher, nodes: Nodes
) -> None:
    waiting = launcher.launch("waits", shell("echo up; exec sleep 9999", LATE))
    killed = launcher.launch("killed", shell("exec sleep 9999", LATE))
    of_closed = shared.launch("terminated", shell("exec sleep 9999", LATE))
    launcher.kill("killed")
    shared.terminate("terminated", 0)
    assert reason(killed) == reason(of_closed) == "ended on request before it was started"
    assert not waiting.exit_port.done()
    with nodes.one_more({"zone": "late"}):
        assert [next(launcher.logs("waits", follow=True), "")] == ["up"], ended(waiting.exit_port)
        until(lambda: list(procs_of(launcher.session).values()) == ["sleep 9999"], "it is the only one")
        assert not procs_of(shared.session)
        assert zones(launcher, nodes, Placement(), 2) == {"a": 1, "b": 1, "late": 1}  # the one that waited
        launcher.kill("waits")
        ended(waiting.exit_port)
        launcher.close(0)  # its agent there goes with it


def test_closing_ends_what_waits_for_labels(launcher: RayProcLauncher) -> None:
    proc = launcher.launch("waits", shell("exit", LATE))
    launcher.close()
    assert reason(proc) == "ended on request before it was started"
