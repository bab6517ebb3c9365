"""For modules whose tests kill parts of one session that goes on: the session, and the check after the last of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from leaks import leaving_nothing
from ray_rig import Nodes

from ray_launcher import RayProcLauncher

__all__ = ["lasting_session", "nothing_left_at_last"]


@pytest.fixture(scope="module", autouse=True, name="nothing_left")
def nothing_left_at_last(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Instead of the check after each test: what is killed here is replaced, in a session that goes on."""
    with leaving_nothing(tmp_path_factory.getbasetemp()):
        yield


@pytest.fixture(scope="module", name="session")
def lasting_session(nodes: Nodes, nothing_left: None) -> Iterator[RayProcLauncher]:
    """Its nodes outlast an agent that takes its time to come back."""
    with RayProcLauncher(grace=1, lease=30) as launcher:
        yield launcher
        launcher.close(0)
