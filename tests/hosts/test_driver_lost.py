"""The driver's host: its driver killed there, or the host out of reach. Nothing of its session stays."""

from __future__ import annotations

import time

import pytest
from node_rig import until
from ray_hosts import RayHosts
from ray_rig import slowness
from remote import TREE, Deaths, Session

pytestmark = pytest.mark.timeout(300)  # a cluster starts, and all waits have deadlines

#: Seconds: of the sessions; from the driver's end to the procs', without their grace, and to the end of all the rest;
#: from the end of a lease to the end of the procs.
LEASE, GRACE, PROCS_GONE, ALL_GONE, FENCED = 5.0, 1.0, 5.0, 15.0, 1.0
#: Seconds in which Ray has given up a node that it cannot reach; it measures 64 in earnest.
RAY_GIVES_UP = 120.0


def test_a_session_ends_everywhere_with_its_driver(hosts: RayHosts, observer: Session) -> None:
    with Session(hosts, hosts["a"], lease=LEASE, grace=GRACE) as session:
        procs = session.start_on((hosts["b"], hosts["c"]), TREE)
        with Deaths(set().union(*(proc.pids() for proc in procs))) as deaths:
            began = time.monotonic()
            session.kill()
            gone = deaths.wait() - began
            until(lambda: not session.helpers(), "the supervisors are gone")
            all_gone = time.monotonic() - began
    assert gone <= PROCS_GONE * slowness() + GRACE
    assert all_gone <= ALL_GONE * slowness() + GRACE


def test_procs_end_where_the_driver_cannot_reach_them(hosts: RayHosts, observer: Session) -> None:
    with Session(hosts, hosts["a"], lease=LEASE, grace=GRACE) as session:
        procs = session.start_on((hosts["b"], hosts["c"]), TREE)
        with Deaths(set().union(*(proc.pids() for proc in procs))) as deaths:
            began = time.monotonic()
            with hosts.cut_off(hosts["a"]):
                gone = deaths.wait()
                exits = [session.ended(proc) for proc in procs]
        assert gone - began <= LEASE + (FENCED + GRACE) * slowness()
        for proc, exit_ in zip(procs, exits, strict=True):
            assert exit_.at > gone
            assert exit_.reason is not None
            assert proc.node_id in exit_.reason
        session.close()
        assert len(session.exits) == len(procs)


@pytest.mark.slow
def test_nothing_of_a_session_stays_when_ray_has_given_its_driver_up(hosts: RayHosts, observer: Session) -> None:
    """While the cut lasts the driver's own host is a world of its own: driver, spawner and procs there go on."""
    own, other = hosts["a"], hosts["b"]
    try:
        with Session(hosts, own, lease=LEASE, grace=GRACE) as session:
            at_home, abroad = session.start_on((own, other), TREE)
            hosts.cut(own)
            until(lambda: not abroad.pids(), "the procs elsewhere are gone")
            until(lambda: not hosts.actors(other), "the agent elsewhere has left", RAY_GIVES_UP)
            assert len(at_home.pids()) == at_home.size
            hosts.heal(own)
            until(lambda: not session.procs(), "the procs on the driver's host are gone", RAY_GIVES_UP)
            until(lambda: not session.helpers(), "the supervisors are gone", RAY_GIVES_UP)
            until(lambda: not hosts.actors(own) + hosts.actors(other), "the actors are gone", RAY_GIVES_UP)
            assert "exit port closed" in (session.ended(at_home).reason or "")
            assert len(session.exits) == 2
    finally:
        hosts.clear(own)
        hosts.restore()
