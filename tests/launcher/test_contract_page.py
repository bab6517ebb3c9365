"""The spawner of the page on writing one keeps the contract, as that page checks it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import ray

from ray_launcher import ActorProcLauncher, start_spawner
from ray_launcher.testing import SpawnerContract

PAGE = Path(__file__).parent.parent.parent / "examples" / "writing_a_spawner.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page(cluster: str) -> Iterator[ModuleType]:
    """A module with all of the page's code. Nobody can import it, so the cluster gets its classes by value."""
    module = ModuleType("writing_a_spawner")
    for block in BLOCKS:
        exec(block, module.__dict__)  # noqa: S102  # our own
    yield module
    ray.kill(module.launcher._spawner)


@pytest.fixture(scope="module")
def launcher(page: ModuleType) -> Iterator[ActorProcLauncher]:
    spawner = start_spawner(page.BriefSpawner)
    yield ActorProcLauncher(spawner)
    ray.kill(spawner)


class TestThePagesSpawner(SpawnerContract):
    pass


def test_it_prints_what_it_says(page: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    exec(BLOCKS[1], page.__dict__)  # noqa: S102  # our own
    assert capsys.readouterr().out == "exited with code 1\n"
    ray.kill(page.launcher._spawner)


def test_its_check_is_of_the_contract(page: ModuleType) -> None:
    assert issubclass(page.TestBriefSpawner, SpawnerContract)
