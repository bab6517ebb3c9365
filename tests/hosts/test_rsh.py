"""`ray-launcher rsh` as the transport of real MPI launchers: they run on one host, and their ranks on two others."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
from node_rig import until
from ray_hosts import RayHosts
from remote import Session

SUM = Path(__file__).parents[2] / "examples" / "scripts" / "mpi_sum.py"
HYDRA = Path(sys.executable).with_name("mpiexec.hydra")
OPEN_MPI = shutil.which("mpirun.openmpi")
LIBRARIES = "/usr/lib/x86_64-linux-gnu"  # Debian's
RSH = [sys.executable, "-m", "ray_launcher", "rsh"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),  # a cluster starts, and all waits have deadlines
]


@pytest.fixture
def hydra(hosts: RayHosts, observer: Session, tmp_path: Path) -> list[str]:
    """MPICH's mpiexec, with two ranks on two hosts. It takes a program as its ssh, without arguments."""
    if not HYDRA.exists():
        pytest.skip("needs MPICH (pip install mpich mpi4py)")
    script = tmp_path / "rsh"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(RSH)} "$@"\n')
    script.chmod(0o755)
    where = ["-hosts", f"{hosts['a'].address},{hosts['b'].address}", "-localhost", hosts.head.address]
    return ["env", *_cluster(hosts), str(HYDRA), "-launcher", "ssh", "-launcher-exec", str(script), *where, "-n", "2"]


@pytest.fixture
def open_mpi(hosts: RayHosts, observer: Session) -> list[str]:
    """Open MPI's mpirun, with two ranks on two hosts."""
    if OPEN_MPI is None:
        pytest.skip("needs Open MPI (Debian's openmpi-bin)")
    where = ["-H", f"{hosts['a'].address},{hosts['b'].address}", "-n", "2"]
    how = ["--allow-run-as-root", "--mca", "plm_rsh_agent", shlex.join(RSH)]
    return ["env", *_cluster(hosts), OPEN_MPI, *how, *where]


def _cluster(hosts: RayHosts) -> list[str]:
    root = Path(__file__).parents[2]
    return [f"RAY_ADDRESS={hosts.address}", f"PYTHONPATH={root}"]


def test_the_ranks_of_mpich_talk_to_each_other(hosts: RayHosts, hydra: list[str]) -> None:
    output = hosts.run(hosts.head, *hydra, sys.executable, str(SUM))
    assert sorted(output.splitlines()) == ["rank 0 of 2: the sum is 1", "rank 1 of 2: the sum is 1"]


def test_the_ranks_of_open_mpi_talk_to_each_other(hosts: RayHosts, open_mpi: list[str]) -> None:
    tcp = ["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "10.86.0.0/24", "-x", "MPI4PY_MPIABI=openmpi"]
    output = hosts.run(hosts.head, *open_mpi, *tcp, "-x", f"LD_LIBRARY_PATH={LIBRARIES}", sys.executable, str(SUM))
    assert sorted(output.splitlines()) == ["rank 0 of 2: the sum is 1", "rank 1 of 2: the sum is 1"]


def test_the_ranks_of_open_mpi_run_on_both_hosts(hosts: RayHosts, open_mpi: list[str]) -> None:
    output = hosts.run(hosts.head, *open_mpi, "sh", "-c", "echo $OMPI_COMM_WORLD_RANK; ip -4 -o addr")
    assert {"0", "1"} <= set(output.splitlines())
    assert all(f" {hosts[name].address}/" in output for name in "ab")


def test_what_mpich_started_ends_with_it(hosts: RayHosts, hydra: list[str]) -> None:
    with hosts.start(hosts.head, *hydra, "sleep", "9998") as running:
        until(lambda: all("sleep 9998" in hosts[name].processes().values() for name in "ab"), "both ranks run", 60)
        running.process.send_signal(signal.SIGTERM)
        running.kill()
    until(lambda: not any("sleep 9998" in host.processes().values() for host in hosts), "nothing is left", 60)
