"""A supervisor per test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from node_rig import Rig

settings.register_profile("node", deadline=None)  # the machine may be busy with the rest of a test run
settings.load_profile("node")


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Makes rigs with the times that a test needs, one running supervisor each."""
    made: list[Rig] = []

    def make(**options: float) -> Rig:
        path = tmp_path / f"rig{len(made)}"
        path.mkdir()
        rig = Rig(path, **options)  # type: ignore[arg-type]  # raylet is an int
        made.append(rig)
        rig.start()
        rig.connect()
        return rig

    yield make
    for rig in made:
        rig.stop()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """A running supervisor, and an agent that has said hello."""
    return make_rig()
