"""An autoscaler that brings the node that a launch waits for: Ray's own, with its provider of nodes on one host."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest
from hosts import Hosts, needs_hosts

_RAY = (sys.executable, "-m", "ray.scripts.scripts")
#: Whether `ray start` wants a token depends on whether there has been one for this user before.
_OPEN = ("env", "RAY_AUTH_MODE=disabled")
_ENV = (*_OPEN, "RAY_FAKE_CLUSTER=1", "AUTOSCALER_UPDATE_INTERVAL_S=1")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # a cluster starts, and all waits have deadlines

#: What an empty `ray up` configuration has, and two kinds of nodes.
_CONFIG = {
    "cluster_name": "fake",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "upscaling_speed": 1.0,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    },
    "head_node_type": "head",
    **{key: {} for key in ("auth", "docker", "file_mounts", "head_node", "worker_nodes")},
    **{
        key: [] for key in ("head_setup_commands", "worker_setup_commands", "setup_commands", "initialization_commands")
    },
    **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
}
_DRIVER = """
import sys, time
from ray_launcher import LaunchOptions, Placement, RayProcLauncher

with RayProcLauncher() as launcher:
    proc = launcher.launch("waits", LaunchOptions(program="true", placement=Placement(num_cpus=2, timeout=90)))
    while not (reason := launcher.procs()[0].waits_for) and not proc.exit_port.done():
        time.sleep(0.05)
    print(reason)
    print(proc.exit_port.wait(100))
"""


@pytest.fixture
def scaled() -> Iterator[Hosts]:
    """A head without CPUs, and an autoscaler that may add one node with two."""
    needs_hosts()
    with Hosts("head") as hosts:
        head = hosts["head"]
        config = head.directory / "config.json"
        config.write_text(json.dumps(_CONFIG))
        options = [f"--autoscaling-config={config}", f"--node-ip-address={head.address}", "--port=6379"]
        little = ["--num-cpus=0", "--num-gpus=0", "--include-dashboard=false", "--object-store-memory=80000000"]
        hosts.run(head, *_ENV, *_RAY, "start", "--head", "--disable-usage-stats", *options, *little)
        yield hosts


def test_a_launch_that_waits_for_a_node_gets_the_one_that_is_added(scaled: Hosts) -> None:
    head = scaled["head"]
    address = f"RAY_ADDRESS={head.address}:6379"
    reason, result = scaled.run(head, *_OPEN, address, sys.executable, "-c", _DRIVER).splitlines()
    assert "needs CPU 2" in reason
    assert result == "exited with code 0"
