"""A node whose raylet is killed or stopped: its procs end, and each port says so, once and not too early."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import pytest
from hosts import Host
from losses import Loss, losses
from ray_hosts import RayHosts
from ray_rig import slowness
from remote import TREE, WORKER, Exit, Session

pytestmark = pytest.mark.timeout(300)  # a cluster starts, and all waits have deadlines

#: Seconds: of the session; how long procs of a lost raylet live beyond their grace; how long beyond its lease a node
#: may count as there.
LEASE, GRACE, PROCS_GONE, REPORT = 5.0, 1.0, 5.0, 3.0
WAYS = {"its raylet is SIGKILLed": "a", "ray stop": "b", "ray stop --force": "c"}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """losses: by way.  changes: the bystander's exits, and pids that came or went.  later: what launches on the
    lost nodes came to."""

    losses: dict[str, Loss]
    changes: set[int | Exit]
    later: dict[str, Exit]
    helpers: dict[int, str]


@pytest.fixture(scope="module")
def outcome(hosts: RayHosts, observer: Session) -> Iterator[Outcome]:
    """All ways at once: they wait most of the time."""
    force = functools.partial(hosts.ray_stop, force=True)
    lose: list[Callable[[Host], None]] = [hosts.kill_raylet, hosts.ray_stop, force]
    lost = [hosts[name] for name in WAYS.values()]
    with Session(hosts, hosts.head, lease=LEASE, grace=GRACE) as session:
        bystander = session.start("bystander", hosts.head, TREE)
        before = bystander.pids()
        with losses(session, dict(zip(lost, lose, strict=True))) as found:
            changes = (bystander.pids() ^ before) | set(session.exits_of(bystander))
            again = {way: session.launch(f"again on {name}", hosts[name], WORKER) for way, name in WAYS.items()}
            later = {way: session.ended(proc) for way, proc in again.items()}
            session.close()
            helpers = session.helpers()
            yield Outcome({way: found[name] for way, name in WAYS.items()}, changes, later, helpers)


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
    loss = outcome.losses[way]
    assert loss.gone_after is not None
    assert loss.told_after is not None
    assert loss.gone_after < loss.told_after


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
