"""For the tests of the command line: one Ray that belongs to none of them, and the environment that names it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import OwnRay


@pytest.fixture(scope="session")
def own_ray() -> Iterator[OwnRay]:
    """A cluster that a command can connect to."""
    ray = OwnRay()
    yield ray
    ray.stop()


@pytest.fixture
def env(own_ray: OwnRay) -> dict[str, str]:
    """The environment of a command that shall use it."""
    return own_ray.environ()


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory for sockets, whose paths have 107 bytes at most."""
    directory = Path(tempfile.mkdtemp(prefix="c"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
