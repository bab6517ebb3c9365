"""The example spawners keep the contract of every spawner."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from custom_spawner import LocalSpawner
from time_limit import TimeLimitSpawner

from ray_launcher import ActorProcLauncher, start_spawner
from ray_launcher.testing import SpawnerContract


@pytest.fixture(
    scope="module", params=[(LocalSpawner,), (TimeLimitSpawner, LocalSpawner, 9999)], ids=["local", "time_limit"]
)
def launcher(cluster: str, request: pytest.FixtureRequest) -> Iterator[ActorProcLauncher]:
    spawner = start_spawner(*request.param)
    yield ActorProcLauncher(spawner)
    ray.kill(spawner)


class TestExampleSpawner(SpawnerContract):
    pass
