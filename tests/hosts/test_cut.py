"""A node that nothing reaches: its procs end before anybody takes them for dead. A short cut loses nothing."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

import pytest
from hosts import Host
from losses import Outcome, losses, outcome_of
from node_rig import until
from ray_hosts import RayHosts
from ray_rig import slowness
from remote import WORKER, Session

from ray_launcher.cluster.contact import RENEWALS

pytestmark = pytest.mark.timeout(300)  # a cluster starts, and all waits have deadlines

#: Seconds: of the session; from the end of a lease to the end of the procs; to the report.
LEASE, FENCED, REPORT = 5.0, 1.0, 3.0
#: A node that can still ask for a lease may be granted one more, of which it never hears.
ONE_MORE = LEASE / RENEWALS
WAYS = {"cut off": "a", "unheard": "b", "deaf": "c"}
#: In which Ray has given up a node that it cannot reach; it measures 64 in earnest.
RAY_GIVES_UP = 120.0
#: Of the session that outlives a cut, and the cut: TCP tries again after 3.0 and 6.2 s.
LONG_LEASE, SHORT_CUT = 12.0, 4.0


@pytest.fixture(scope="module")
def outcome(hosts: RayHosts, observer: Session) -> Iterator[Outcome]:
    unheard, deaf = functools.partial(hosts.lose, sent=1.0), functools.partial(hosts.lose, received=1.0)
    lose: list[Callable[[Host], None]] = [hosts.cut, unheard, deaf]
    with outcome_of(hosts, WAYS, lose, heal=True, lease=LEASE) as outcome:
        yield outcome


@pytest.mark.parametrize("way", WAYS)
def test_a_port_resolves_only_when_the_proc_is_gone(outcome: Outcome, way: str) -> None:
    assert outcome.losses[way].is_told_once_gone()


@pytest.mark.parametrize("way", WAYS)
def test_the_node_ends_its_procs_when_the_lease_is_over(outcome: Outcome, way: str) -> None:
    gone_after = outcome.losses[way].gone_after
    assert gone_after is not None
    assert gone_after <= LEASE + FENCED * slowness()


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_is_reported_soon_after_the_lease(outcome: Outcome, way: str) -> None:
    told_after = outcome.losses[way].told_after
    assert told_after is not None
    assert told_after <= LEASE + ONE_MORE + REPORT * slowness()


@pytest.mark.parametrize("way", WAYS)
def test_a_port_resolves_once_naming_the_lost_node(outcome: Outcome, way: str) -> None:
    loss = outcome.losses[way]
    (exit_,) = loss.exits
    if exit_.reason is None:  # the report of what the node did to its proc came through
        assert way == "deaf"
        assert exit_.returncode == -9
        return
    assert "was lost" in exit_.reason
    assert loss.proc.node_id in exit_.reason
    assert loss.proc.host.address in exit_.reason


@pytest.mark.parametrize("way", WAYS)
def test_the_node_serves_again_when_the_network_does(outcome: Outcome, way: str) -> None:
    exit_ = outcome.later[way]
    assert exit_.returncode == 0, exit_


def test_no_proc_survives_the_cut(outcome: Outcome) -> None:
    assert outcome.survivors == {}


def test_other_nodes_are_untouched(outcome: Outcome) -> None:
    assert not outcome.changes


@pytest.mark.slow
def test_a_cut_shorter_than_the_lease_loses_nothing(hosts: RayHosts, observer: Session) -> None:
    with Session(hosts, hosts.head, lease=LONG_LEASE) as session:
        short, long = (session.start(proc_id, hosts["a"], WORKER) for proc_id in ("short", "long"))
        before = long.pids()
        with hosts.cut_off(hosts["a"]):
            short.exit(7)
            until(lambda: not short.pids(), "the short one is gone")
            time.sleep(SHORT_CUT)
            assert session.exits == []
        assert session.ended(short).returncode == 7
        assert long.pids() == before
        long.exit(3)
        assert session.ended(long).returncode == 3
        assert [proc.noted().count("start") for proc in (short, long)] == [1, 1]
        session.close()
        assert len(session.exits) == 2


@pytest.mark.slow
def test_a_node_that_ray_has_given_up_is_gone_for_good(hosts: RayHosts, observer: Session) -> None:
    host = hosts["a"]
    try:
        with Session(hosts, hosts.head, lease=LEASE) as session:
            with losses(session, {host: hosts.cut}) as found:
                until(lambda: host.address not in observer.ask("nodes"), "Ray has given the node up", RAY_GIVES_UP)
                again = session.launch("again", host, WORKER)
                assert again.node_id in (session.ended(again).reason or "")
                hosts.heal(host)
                until(lambda: not hosts.actors(host), "the agent has left the host", RAY_GIVES_UP)
                assert again.noted() == []
                assert found[host.name].proc.pids() == set()
                assert len(found[host.name].exits) == 1
            session.close()
            assert len(session.exits) == 2
    finally:
        hosts.clear(host)
        hosts.restore()
