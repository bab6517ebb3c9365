"""The default spawner keeps the contract of every spawner."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_launcher import LaunchOptions, RayProcLauncher
from ray_launcher.testing import SpawnerContract


@pytest.fixture(scope="module")
def launcher(cluster: str) -> Iterator[RayProcLauncher]:
    with RayProcLauncher() as launcher:
        # Starts the agent and its supervisor, which then are no test's leak.
        launcher.launch("first", LaunchOptions(program="true")).exit_port.wait(60)
        yield launcher


class TestRayProcLauncher(SpawnerContract):
    pass
