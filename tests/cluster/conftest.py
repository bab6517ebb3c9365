"""One cluster of three nodes for the tests of this folder; they run first, because only one Ray can be connected."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from detached_rig import attached
from node_rig import until
from ray_rig import ALL, DEADLINE, RAYLET_ENV, Nodes, actors_of, end_all, ended, free, rest_of, shell

from ray_launcher import RayProcLauncher

_HERE = Path(__file__).parent
_up = contextlib.ExitStack()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These first: the cluster of the other tests lives until the very end."""
    items.sort(key=lambda item: _HERE not in item.path.parents)


@pytest.hookimpl(wrapper=True)  # after the fixtures of the test, and where they fail, too
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Iterator[None]:
    """Called for the tests of this folder; after the last one the cluster goes."""
    try:
        return (yield)
    finally:
        if nextitem is None or _HERE not in nextitem.path.parents:
            _up.close()


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    """The cluster."""
    assert not ray.is_initialized(), "another test has connected this process already"
    environ = _up.enter_context(pytest.MonkeyPatch.context())
    for name, value in RAYLET_ENV.items():
        environ.setenv(name, value)
    nodes = Nodes()
    _up.callback(nodes.shut_down)
    for name in RAYLET_ENV.keys() - {"RAY_AUTH_TOKEN"}:  # which drivers need too
        environ.delenv(name)
    yield nodes
    _up.close()


@pytest.fixture(scope="session")
def shared(nodes: Nodes) -> RayProcLauncher:
    """A session for many tests, with its agents: a new one takes seconds. They must end what they launch."""
    launcher = RayProcLauncher(grace=1)
    _up.callback(launcher.close, 0)
    first = {f"first on {zone}": shell("exit", nodes.on(zone)) for zone in nodes.ids()}
    assert all(ended(started.exit_port).ok for started in launcher.launch_many(first).values())
    return launcher


@pytest.fixture
def launcher(nodes: Nodes) -> Iterator[RayProcLauncher]:
    """A session for one test."""
    with RayProcLauncher(grace=1) as launcher:
        yield launcher
        launcher.close(0)


@pytest.fixture
def all_free(shared: RayProcLauncher) -> Iterator[None]:
    """Nothing of the cluster is held after a test."""
    yield
    end_all(shared)
    until(lambda: free() == ALL, "all resources are back", DEADLINE)


@pytest.fixture
def name(nodes: Nodes) -> Iterator[str]:
    """Of a session that is ended after the test."""
    name = uuid.uuid4().hex[:8]
    yield name
    if f"spawner-{name}" in actors_of(name):
        attached(name).end(0)
    until(lambda: not rest_of(name), "nothing is left of the session")
