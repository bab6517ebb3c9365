"""The example of procs in virtual machines keeps the contract of every spawner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import guests
import pytest
import ray
from vm_spawner import VmSpawner

from ray_launcher import ActorProcLauncher, Exited, LaunchOptions, start_spawner
from ray_launcher.testing import SpawnerContract

NONE = guests.why_none()
pytestmark = [pytest.mark.skipif(NONE is not None, reason=str(NONE)), pytest.mark.timeout(2 * guests.DEADLINE)]


@pytest.fixture(scope="module")
def launcher(cluster: str) -> Iterator[ActorProcLauncher]:
    spawner = start_spawner(VmSpawner, guests.kernel())
    launcher = ActorProcLauncher(spawner)
    # Starts the agent and its supervisor, which then are no test's leak.
    first = launcher.launch("first", LaunchOptions(program="true")).exit_port.wait(guests.DEADLINE)
    assert first.kind == Exited(0)
    yield launcher
    ray.kill(spawner)


class TestVmSpawner(SpawnerContract):
    """Guests share no files with tests: a mark is a line on their console."""

    crowd = 3  # each boots for seconds
    deadline = guests.DEADLINE

    def runs(self, mark: Path) -> LaunchOptions:
        return self.shell('echo "$1"; exec sleep 9999', str(mark))

    def runs_with_child(self, mark: Path) -> LaunchOptions:
        return self.shell('sleep 9999 & echo "$1"; exec sleep 9999', str(mark))

    def ignores_term(self, mark: Path) -> LaunchOptions:
        return self.shell('trap "" TERM; echo "$1"; exec sleep 9999', str(mark))

    def is_ready(self, mark: Path) -> bool:
        return bool(guests.pids_of(str(mark)))

    def is_alive(self, mark: Path) -> bool:
        return bool(guests.pids_of(str(mark)))
