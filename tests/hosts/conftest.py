"""One Ray cluster on four hosts for the tests of this folder; its drivers run there, never in the tests' process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import needs_hosts
from node_rig import marked
from ray_hosts import RayHosts
from remote import Session

#: Seconds that agents and supervisors get to notice the end of their driver.
DEADLINE = 30.0
_HERE = Path(__file__).parent
_up = contextlib.ExitStack()


@pytest.hookimpl(trylast=True)  # after the fixtures of the test
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Called for the tests of this folder; after the last one the cluster goes."""
    if nextitem is None or _HERE not in nextitem.path.parents:
        _up.close()


@pytest.fixture(scope="session")
def cluster_of_hosts() -> Iterator[RayHosts]:
    """Its head is on the host `head`, its nodes are the hosts `a`, `b` and `c`."""
    needs_hosts()
    hosts = RayHosts("head", "a", "b", "c")
    _up.callback(hosts.close)
    yield hosts
    _up.close()


@pytest.fixture(scope="session")
def observer(cluster_of_hosts: RayHosts) -> Session:
    """A session without procs; through its driver the tests ask Ray."""
    return _up.enter_context(Session(cluster_of_hosts, cluster_of_hosts.head))


@pytest.fixture(scope="module")
def hosts(cluster_of_hosts: RayHosts) -> RayHosts:
    """The cluster with all its nodes, whatever the tests before have done to them."""
    cluster_of_hosts.restore()
    return cluster_of_hosts


@pytest.fixture(autouse=True)
def nothing_left_on_hosts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test that leaves a proc, a supervisor, its directory or an actor on the hosts."""
    yield
    if "hosts" not in request.fixturenames:
        return
    hosts, observer = request.getfixturevalue("hosts"), request.getfixturevalue("observer")
    give_up = time.monotonic() + DEADLINE
    while (left := list(_left(hosts, observer))) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not left, "left on the hosts:\n  " + "\n  ".join(left)


def _left(hosts: RayHosts, observer: Session) -> Iterator[str]:
    for host in hosts:
        ours = {pid: words for pid, words in marked("RAY_LAUNCHER_ID=").items() if host.runs(pid)}
        ours |= {pid: words for pid, words in host.processes().items() if "ray_launcher/node/main.py" in words}
        yield from (f"process {pid} on {host.name}: {words}" for pid, words in ours.items())
        yield from (f"directory {path}" for path in host.directory.glob("ray-launcher-*/*"))
    yield from (f"actor {name}" for name in observer.ask("actors") if observer.name not in name)
