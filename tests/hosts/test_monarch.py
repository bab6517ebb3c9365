"""Monarch's hosts on two hosts, which only a network connects."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from ray_hosts import RayHosts
from remote import Session

DRIVER = Path(__file__).parents[1] / "support" / "monarch_hosting.py"
EXAMPLE = Path(__file__).parents[2] / "examples" / "monarch_mesh.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),  # a cluster starts, and all waits have deadlines
    pytest.mark.skipif(
        importlib.util.find_spec("monarch") is None, reason="needs Monarch (pip install 'ray-proc-launcher[monarch]')"
    ),
]


def test_actors_on_two_hosts_are_reached_over_the_network(hosts: RayHosts, observer: Session) -> None:
    output = hosts.run(hosts.head, "env", f"RAY_ADDRESS={hosts.address}", sys.executable, str(EXAMPLE))
    assert output.splitlines()[-1] == "4 actors: pi is about 3.141"


def test_a_worker_that_is_killed_on_the_second_host_is_told_by_monarchs_supervision(
    hosts: RayHosts, observer: Session
) -> None:
    output = hosts.run(hosts.head, sys.executable, str(DRIVER), "lose", hosts.address, "")
    [lost] = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert lost["exit"] == "killed by SIGKILL"
    assert lost["supervision"].startswith("SupervisionError: ")
