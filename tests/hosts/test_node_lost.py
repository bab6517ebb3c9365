"""A node whose raylet is killed or stopped: its procs end, and each port says so, once and not too early."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
from hosts import Host
from losses import Outcome, outcome_of
from ray_hosts import RayHosts
from ray_rig import slowness
from remote import Session

pytestmark = pytest.mark.timeout(300)  # a cluster starts, and all waits have deadlines

#: Seconds: of the session; how long procs of a lost raylet live beyond their grace; how long beyond its lease a node
#: may count as there.
LEASE, GRACE, PROCS_GONE, REPORT = 5.0, 1.0, 5.0, 3.0
WAYS = {"its raylet is SIGKILLed": "a", "ray stop": "b", "ray stop --force": "c"}


@pytest.fixture(scope="module")
def outcome(hosts: RayHosts, observer: Session) -> Iterator[Outcome]:
    force = functools.partial(hosts.ray_stop, force=True)
    lose: list[Callable[[Host], None]] = [hosts.kill_raylet, hosts.ray_stop, force]
    with outcome_of(hosts, WAYS, lose, heal=False, lease=LEASE, grace=GRACE) as outcome:
        yield outcome


@pytest.mark.parametrize("way", WAYS)
def test_procs_end_with_their_raylet(outcome: Outcome, way: str) -> None:
    gone_after = outcome.losses[way].gone_after
    assert gone_after is not None
    assert gone_after <= (PROCS_GONE + GRACE) * slowness()


@pytest.mark.parametrize("way", WAYS)
def test_a_port_resolves_once_naming_the_lost_node(outcome: Outcome, way: str) -> None:
    loss = outcome.losses[way]
    (exit_,) = loss.exits
    if exit_.reason is None:  # the proc's own end was reported before the agent went
        assert way == "ray stop"
        assert exit_.returncode == -9
    else:
        assert "was lost" in exit_.reason
        assert loss.proc.node_id in exit_.reason
        assert loss.proc.host.address in exit_.reason


@pytest.mark.parametrize("way", WAYS)
def test_a_port_resolves_only_when_the_proc_is_gone(outcome: Outcome, way: str) -> None:
    assert outcome.losses[way].is_told_once_gone()


@pytest.mark.parametrize("way", WAYS)
def test_a_lost_node_is_reported_soon_after_its_lease(outcome: Outcome, way: str) -> None:
    told_after = outcome.losses[way].told_after
    assert told_after is not None
    assert told_after <= LEASE + REPORT * slowness()


def test_other_nodes_are_untouched(outcome: Outcome) -> None:
    assert not outcome.changes


@pytest.mark.parametrize("way", WAYS)
def test_a_launch_on_a_lost_node_fails_naming_it(outcome: Outcome, way: str) -> None:
    exit_ = outcome.later[way]
    assert exit_.reason is not None
    assert outcome.losses[way].proc.node_id in exit_.reason


def test_the_session_closes_with_nothing_left(outcome: Outcome) -> None:
    assert outcome.helpers == {}
