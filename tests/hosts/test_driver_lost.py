"""The driver's host: its driver killed there, or the host out of reach. Nothing of its session stays."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import pytest
from node_rig import until
from ray_hosts import RayHosts
from ray_rig import slowness
from remote import TREE, Deaths, Exit, Proc, Session

pytestmark = pytest.mark.timeout(300)  # a cluster starts, and all waits have deadlines

#: Seconds: of the sessions; from the driver's end to the procs', without their grace, and to the end of all the rest;
#: from the end of a lease to the end of the procs.
LEASE, GRACE, PROCS_GONE, ALL_GONE, FENCED = 5.0, 1.0, 5.0, 15.0, 1.0
#: Seconds in which Ray has given up a node that it cannot reach; it measures 64 in earnest.
RAY_GIVES_UP = 120.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of two drivers at the same time, one killed, the other out of reach; times in seconds from then.

    killed_gone, all_gone: when the procs, and when the supervisors of the first had ended.  began, gone: when the host
    of the second was cut off, and when its procs had ended, by the monotonic clock.  told: what its ports said.
    exits: how often they did.
    """

    killed_gone: float
    all_gone: float
    began: float
    gone: float
    told: dict[str, Exit]
    exits: int


@pytest.fixture(scope="module")
def outcome(hosts: RayHosts, observer: Session) -> Iterator[Outcome]:
    lost, far = hosts["a"], (hosts["b"], hosts["c"])
    with (
        Session(hosts, hosts["b"], lease=LEASE, grace=GRACE) as killed,
        Session(hosts, lost, lease=LEASE, grace=GRACE) as cut,
    ):
        of_killed, of_cut = killed.start_on((hosts.head, hosts["c"]), TREE), cut.start_on(far, TREE)
        with _deaths(of_killed) as deaths, _deaths(of_cut) as later_deaths, hosts.cut_off(lost):
            began = time.monotonic()
            killed.kill()
            killed_gone = deaths.wait() - began
            until(lambda: not killed.helpers(), "the supervisors are gone")
            all_gone = time.monotonic() - began
            gone = later_deaths.wait()
            told = {proc.node_id: cut.ended(proc) for proc in of_cut}
        cut.close()
        yield Outcome(killed_gone, all_gone, began, gone, told, len(cut.exits))


def _deaths(procs: list[Proc]) -> Deaths:
    return Deaths(set().union(*(proc.pids() for proc in procs)))


def test_procs_end_everywhere_with_their_driver(outcome: Outcome) -> None:
    assert outcome.killed_gone <= PROCS_GONE * slowness() + GRACE


def test_a_session_ends_everywhere_with_its_driver(outcome: Outcome) -> None:
    assert outcome.all_gone <= ALL_GONE * slowness() + GRACE


def test_procs_end_where_the_driver_cannot_reach_them(outcome: Outcome) -> None:
    assert outcome.gone - outcome.began <= LEASE + (FENCED + GRACE) * slowness()


def test_a_driver_out_of_reach_is_told_once_that_nodes_were_lost_and_when_the_procs_are_gone(outcome: Outcome) -> None:
    assert outcome.exits == len(outcome.told) == 2
    for node_id, exit_ in outcome.told.items():
        assert exit_.at > outcome.gone
        assert exit_.reason is not None
        assert node_id in exit_.reason


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
