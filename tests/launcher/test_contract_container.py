"""The container spawner keeps the contract of every spawner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import podman
import pytest
import ray

from ray_launcher import ActorProcLauncher, LaunchOptions, start_spawner
from ray_launcher.spawners.container import ContainerSpawner
from ray_launcher.testing import SpawnerContract


@pytest.fixture(scope="module")
def launcher(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActorProcLauncher]:
    if reason := podman.missing():
        pytest.skip(reason)
    podman.make_image()
    base = tmp_path_factory.getbasetemp()
    spawner = start_spawner(
        ContainerSpawner,
        image=podman.IMAGE,
        engine_options=podman.options(),
        run_options=podman.RUN_OPTIONS,
        mounts=[f"{base}:{base}"],
    )
    launcher = ActorProcLauncher(spawner)
    launcher.launch("first", LaunchOptions(program="true")).exit_port.wait(60)
    yield launcher
    ray.kill(spawner)


class TestContainerSpawner(SpawnerContract):
    crowd = 4  # a container costs a third of a second

    def is_alive(self, mark: Path) -> bool:
        """This busybox has no flock, so: whether any process has the file open."""
        found = mark.stat()
        return any(_is_same(fd, found) for fd in Path("/proc").glob("[0-9]*/fd/9"))


def _is_same(fd: Path, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(fd.stat(), found)
    except OSError:
        return False
