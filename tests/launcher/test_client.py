"""Through Ray Client a launcher could not keep its promises, and says so."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ray_launcher import ProcLauncherError, RayProcLauncher

SCRIPT = """
import ray
from ray.util.client.ray_client_helpers import ray_start_client_server
from ray_launcher import ProcLauncherError, RayProcLauncher

with ray_start_client_server():
    for ask in (RayProcLauncher, lambda: RayProcLauncher.find("any"), lambda: RayProcLauncher(address="ray://host:1")):
        try:
            ask()
        except ProcLauncherError as error:
            print(str(error).partition(":")[0])
"""


def test_its_address_is_refused_with_the_reason() -> None:
    with pytest.raises(ProcLauncherError, match=r"Ray Client \(ray://\) cannot tell how procs end: run this on a node"):
        RayProcLauncher(address="ray://host:1")


@pytest.mark.slow
def test_a_process_that_is_connected_so_is_refused_too() -> None:
    command = [sys.executable, "-c", SCRIPT]
    environ = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith("Ray Client")]
    assert said == ["Ray Client (ray"] * 3, done.stderr
