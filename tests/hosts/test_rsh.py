"""`ray-launcher rsh` as the transport of mpirun, pdsh and torchrun, which run on one host and start things on two."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
from node_rig import until
from ray_hosts import RayHosts
from remote import Session

DDP = Path(__file__).parents[2] / "examples" / "scripts" / "ddp.py"
SUM = Path(__file__).parents[2] / "examples" / "scripts" / "mpi_sum.py"
HYDRA = Path(sys.executable).with_name("mpiexec.hydra")
OPEN_MPI = shutil.which("mpirun.openmpi")
PDSH = shutil.which("pdsh")
LIBRARIES = "/usr/lib/x86_64-linux-gnu"  # Debian's
RSH = [sys.executable, "-m", "ray_launcher", "rsh"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),  # a cluster starts, and all waits have deadlines
]


@pytest.fixture
def as_ssh(tmp_path: Path) -> Path:
    """It, as a program of one word, which is called `ssh`."""
    script = tmp_path / "ssh"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(RSH)} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.fixture
def hydra(hosts: RayHosts, observer: Session, as_ssh: Path) -> list[str]:
    """MPICH's mpiexec, with two ranks on two hosts. It takes a program as its ssh, without arguments."""
    if not HYDRA.exists():
        pytest.skip("needs MPICH (pip install mpich mpi4py)")
    where = ["-hosts", f"{hosts['a'].address},{hosts['b'].address}", "-localhost", hosts.head.address]
    return ["env", *_cluster(hosts), str(HYDRA), "-launcher", "ssh", "-launcher-exec", str(as_ssh), *where, "-n", "2"]


@pytest.fixture
def open_mpi(hosts: RayHosts, observer: Session) -> list[str]:
    """Open MPI's mpirun, with two ranks on two hosts."""
    if OPEN_MPI is None:
        pytest.skip("needs Open MPI (Debian's openmpi-bin)")
    where = ["-H", f"{hosts['a'].address},{hosts['b'].address}", "-n", "2"]
    how = ["--allow-run-as-root", "--mca", "plm_rsh_agent", shlex.join(RSH)]
    return ["env", *_cluster(hosts), OPEN_MPI, *how, *where]


@pytest.fixture
def pdsh(hosts: RayHosts, observer: Session, as_ssh: Path) -> list[str]:
    """pdsh on two hosts, which tells what they answer and the highest of their exit codes, and heeds one Ctrl-C."""
    if PDSH is None:
        pytest.skip("needs pdsh (Debian's)")
    path = f"PATH={as_ssh.parent}:{os.environ['PATH']}"
    return ["env", *_cluster(hosts), path, PDSH, "-b", "-S", "-w", f"{hosts['a'].address},{hosts['b'].address}"]


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


@pytest.mark.parametrize("how", [["-R", "ssh"], ["-R", "exec", "ssh", "%h"]], ids=["as its ssh", "as any program"])
def test_pdsh_runs_a_command_on_both_hosts(hosts: RayHosts, pdsh: list[str], how: list[str]) -> None:
    output = hosts.run(hosts.head, *pdsh, *how, "ip -4 -o addr show eth0")
    answers = sorted(line.split()[:5] for line in output.splitlines())
    addresses = [hosts[name].address for name in "ab"]
    assert [(words[0], words[4]) for words in answers] == [(f"{each}:", f"{each}/24") for each in addresses]


def test_what_pdsh_started_ends_on_control_c(hosts: RayHosts, pdsh: list[str]) -> None:
    with hosts.start(hosts.head, *pdsh, "-R", "ssh", "exec sleep 9996") as running:
        until(lambda: all("sleep 9996" in hosts[name].processes().values() for name in "ab"), "both run", 60)
        os.kill(running.pid, signal.SIGINT)
        until(lambda: not any("sleep 9996" in host.processes().values() for host in hosts), "nothing is left", 60)


def test_a_launch_script_of_torchrun_trains_on_both_hosts(hosts: RayHosts, observer: Session, tmp_path: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch")
    first, second = (hosts[name].address for name in "ab")
    torchrun = f"env GLOO_SOCKET_IFNAME=eth0 {sys.executable} -m torch.distributed.run --nnodes 2"
    rendezvous = f"--master-addr {first} --master-port 29500"
    script = f"""
    rank=0
    for host in {first} {second}; do
        {shlex.join(RSH)} $host {torchrun} {rendezvous} --node-rank $rank {DDP} --checkpoint {tmp_path}/c --steps 2 &
        rank=$((rank + 1))
    done
    wait %1 && wait %2
    """
    output = hosts.run(hosts.head, "env", *_cluster(hosts), "sh", "-c", script)
    assert [line.partition(":")[0] for line in output.splitlines()] == ["step 0", "step 1"]
