"""Launchers over spawners that start nothing, and drivers of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from odd_spawners import OddSpawner

from ray_launcher import ActorProcLauncher, start_spawner
from ray_launcher.testing import FakeSpawner

#: Seconds after which a wait fails; far beyond what anything here takes.
DEADLINE = 60.0


@pytest.fixture
def start(cluster: str) -> Iterator[Callable[..., Any]]:
    """As `start_spawner`; the spawners end with the test."""
    started: list[Any] = []

    def start(*args: Any, **kwargs: Any) -> Any:
        started.append(start_spawner(*args, **kwargs))
        return started[-1]

    yield start
    for spawner in started:
        ray.kill(spawner)


@pytest.fixture(scope="module")
def shared_fake(cluster: str) -> Iterator[Any]:
    """A `FakeSpawner` without scripts, for tests that need no fresh one: actors take a second to start."""
    spawner = start_spawner(FakeSpawner)
    yield spawner
    ray.kill(spawner)


@pytest.fixture
def fake(shared_fake: Any) -> ActorProcLauncher:
    """A launcher whose procs run until they are ended."""
    return ActorProcLauncher(shared_fake)


@pytest.fixture(scope="module")
def shared_odd(cluster: str) -> Iterator[Any]:
    """An `OddSpawner`, for tests that do not end it."""
    spawner = start_spawner(OddSpawner)
    yield spawner
    ray.kill(spawner)


@pytest.fixture
def odd(shared_odd: Any) -> ActorProcLauncher:
    return ActorProcLauncher(shared_odd)


@pytest.fixture
def driver(cluster: str) -> Callable[[str], str]:
    """Runs a script as another driver of the cluster, and returns what it prints."""

    def run(script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "RAY_ADDRESS": cluster},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def until() -> Callable[[Callable[[], object], str], None]:
    """Waits until a probe returns something true; its last value is in the failure."""

    def wait(probe: Callable[[], object], what: str) -> None:
        give_up = time.monotonic() + DEADLINE
        while not (seen := probe()):
            assert time.monotonic() < give_up, f"not within {DEADLINE} s: {what}; last seen: {seen!r}"
            time.sleep(0.01)

    return wait
