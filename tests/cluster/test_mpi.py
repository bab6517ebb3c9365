"""MPI programs: Hydra's proxies are procs of ours, and nothing of them is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from node_rig import until
from ray_rig import DEADLINE, Nodes, free, pid_of, procs_of, ran

from ray_launcher import Exited, Failed, LaunchError, Placement, RayProcLauncher, Signaled
from ray_launcher.integrations import mpi

MPIEXEC = Path(sys.executable).with_name("mpiexec.hydra")
EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "scripts" / "mpi_sum.py"
pytestmark = [
    pytest.mark.usefixtures("all_free"),
    pytest.mark.skipif(not MPIEXEC.exists(), reason="needs MPICH (pip install mpich mpi4py)"),
]


def run(launcher: RayProcLauncher, *command: str | Path, **more: object) -> object:
    arguments = {"nnodes": 2, "nproc_per_node": 2, "mpiexec": str(MPIEXEC), "launcher": launcher, **more}
    return mpi.run(command, **arguments).kind  # type: ignore[arg-type]


def test_ranks_on_two_nodes_talk_to_each_other(shared: RayProcLauncher, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shared, sys.executable, SCRIPT) == Exited(0)
    assert sorted(capsys.readouterr().out.splitlines()) == [f"rank {rank} of 4: the sum is 6" for rank in range(4)]
    proxies = [info for info in shared.procs() if (info.gang_id or "").startswith("mpi-")][-2:]
    assert len({info.node_id for info in proxies}) == 2


def test_the_exit_code_is_that_of_the_program(shared: RayProcLauncher) -> None:
    assert run(shared, "sh", "-c", "exit 7") == Exited(7)


def test_the_ranks_hold_what_they_need(shared: RayProcLauncher, tmp_path: Path) -> None:
    wait = f"touch {tmp_path}/$PMI_RANK; until test -e {tmp_path}/go; do sleep 0.05; done"
    running = threading.Thread(target=run, args=(shared, "sh", "-c", wait), kwargs={"placement": Placement(num_cpus=1)})
    running.start()
    until(lambda: len(list(tmp_path.iterdir())) == 4, "all ranks run", DEADLINE)
    until(lambda: free()["CPU"] == 0, "Ray knows what they hold", DEADLINE)
    (tmp_path / "go").touch()
    running.join(DEADLINE)


def test_a_rank_sees_the_gpus_of_its_node(shared: RayProcLauncher, capsys: pytest.CaptureFixture[str]) -> None:
    show = ("sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
    assert run(shared, *show, nproc_per_node=1, placement=Placement(num_gpus=2)) == Exited(0)
    assert [sorted(line.split(",")) for line in capsys.readouterr().out.splitlines()] == [["6", "7"]] * 2


def test_variables_reach_the_ranks_and_those_of_the_proxies_gang_do_not(
    shared: RayProcLauncher, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shared, "sh", "-c", "echo $LR ${RANK-none}", nproc_per_node=1, env={"LR": "0.1"}) == Exited(0)
    assert capsys.readouterr().out.splitlines() == ["0.1 none"] * 2


def test_a_run_that_takes_too_long_is_ended(launcher: RayProcLauncher) -> None:
    with pytest.raises(TimeoutError):
        run(launcher, "sleep", "9999", timeout=3)
    until(lambda: not procs_of(launcher.session), "nothing is left", DEADLINE)


def test_a_proxy_that_is_killed_ends_the_others(launcher: RayProcLauncher, tmp_path: Path) -> None:
    ended: list[object] = []
    wait = ("sh", "-c", f"touch {tmp_path}/$PMI_RANK; exec sleep 9999")
    running = threading.Thread(target=lambda: ended.append(run(launcher, *wait)))
    running.start()
    until(lambda: len(list(tmp_path.iterdir())) == 4, "all ranks run", DEADLINE)
    [proxy] = [info for info in launcher.procs() if info.rank == 1]
    os.kill(pid_of(launcher, proxy.proc_id), signal.SIGKILL)
    running.join(DEADLINE)
    [kind] = ended
    assert isinstance(kind, Exited | Signaled)
    assert kind != Exited(0)
    until(lambda: not procs_of(launcher.session), "nothing is left", DEADLINE)


def test_proxies_that_find_no_place_end_the_run(shared: RayProcLauncher) -> None:
    began = time.monotonic()
    kind = run(shared, "true", placement=Placement(num_cpus=2, timeout=1))
    assert isinstance(kind, Failed)
    assert "needs CPU 4" in kind.reason
    assert time.monotonic() - began < DEADLINE


def test_a_manager_that_is_not_there_is_told(shared: RayProcLauncher) -> None:
    with pytest.raises(LaunchError, match="/no/such/mpiexec: program not found on the node"):
        mpi.run(["true"], mpiexec="/no/such/mpiexec", launcher=shared)


def test_the_example_prints_the_sum(nodes: Nodes) -> None:
    lines = ran(str(EXAMPLES / "mpi_sum.py"), RAY_ADDRESS=nodes.address).splitlines()
    assert sorted(lines) == ["exited with code 0", *(f"rank {rank} of 4: the sum is 6" for rank in range(4))]
