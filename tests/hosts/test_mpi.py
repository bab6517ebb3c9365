"""An MPI program on two hosts, which only a network connects."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ray_hosts import RayHosts
from remote import Session

EXAMPLE = Path(__file__).parents[2] / "examples" / "mpi_sum.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),  # a cluster starts, and all waits have deadlines
    pytest.mark.skipif(
        not Path(sys.executable).with_name("mpiexec.hydra").exists(), reason="needs MPICH (pip install mpich mpi4py)"
    ),
]


def test_ranks_on_two_hosts_talk_to_each_other(hosts: RayHosts, observer: Session) -> None:
    output = hosts.run(hosts.head, "env", f"RAY_ADDRESS={hosts.address}", sys.executable, str(EXAMPLE))
    sums = [f"rank {rank} of 4: the sum is 6" for rank in range(4)]
    assert sorted(output.splitlines()) == ["exited with code 0", *sums]
