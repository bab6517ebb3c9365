"""For all tests: a temporary directory of their own, one real Ray for those that ask for it, and the leak check."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from leaks import isolate, nothing_left, ray_starts
from ray.job_config import JobConfig

pytest.register_assert_rewrite("ray_launcher.testing")

__all__ = ["cluster", "nothing_left"]

HERE = Path(__file__).parent
_isolation = contextlib.ExitStack()


def pytest_configure() -> None:
    """Before anything is started: what tests start inherits it."""
    for name in ("COLUMNS", "LINES"):  # which readline sets where pytest has no terminal; they win over a real one's
        os.environ.pop(name, None)
    _isolation.enter_context(isolate())


def pytest_unconfigure() -> None:
    _isolation.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A local Ray with 4 CPUs, to which this process is connected; its address, for other drivers."""
    paths = JobConfig(_py_driver_sys_path=[str(HERE / "support"), str(HERE.parent / "examples")])
    with ray_starts():
        context = ray.init(
            num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, job_config=paths
        )
    yield str(context.address_info["address"])  # type: ignore[attr-defined]  # a BaseContext has none, this one has
    ray.shutdown()
