"""`RayJob`: Monarch's hosts on two nodes, found again by another driver, lost, and ended."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from leaks import leaving_nothing
from node_rig import running, until
from ray_rig import ALL, DEADLINE, Nodes, ran


def release() -> tuple[int, ...]:
    """Monarch's; (0,) without."""
    try:
        return tuple(map(int, importlib.metadata.version("torchmonarch").split(".")[:2]))
    except importlib.metadata.PackageNotFoundError:
        return (0,)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        release() < (0, 7), reason="needs Monarch, release 0.7.0 or later (pip install 'ray-proc-launcher[monarch]')"
    ),
    pytest.mark.timeout(200),  # drivers of Monarch's do all there is to do
]

DRIVER = Path(__file__).parents[1] / "support" / "monarch_hosting.py"
EXAMPLES = Path(__file__).parents[2] / "examples"
Facts = list[dict[str, Any]]


def told(output: str) -> Facts:
    """Monarch writes to stdout, too."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def life(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """What the driver that has made a job has seen, and what the one that has found it."""
    cache = str(tmp_path_factory.mktemp("monarch") / "job.pkl")
    with leaving_nothing():
        return [fact for what in ("make", "find") for fact in told(ran(str(DRIVER), what, nodes.address, cache))]


@pytest.fixture(scope="module")
def shared_session(nodes: Nodes) -> dict[str, Any]:
    """What a driver has seen in a session that is not the job's own."""
    with leaving_nothing():
        [facts] = told(ran(str(DRIVER), "share", nodes.address, ""))
    return facts


def test_each_host_of_a_mesh_is_on_a_node_of_its_own(life: Facts) -> None:
    made, *_ = life
    trainers = [worker["node"] for name, worker in made["workers"].items() if name.startswith("trainers/")]
    assert len(set(trainers)) == len(trainers) == 2
    assert sorted(made["workers"]) == ["dataloaders/0", "trainers/0", "trainers/1"]


def test_actors_run_in_the_procs_of_the_hosts(life: Facts) -> None:
    made, *_ = life
    assert made["sums"] == [0, 1, 4, 9]
    assert made["dataloaders"] == 0
    assert len({place["pid"] for place in made["where"]}) == 4


def test_an_error_of_an_endpoint_reaches_the_driver(life: Facts) -> None:
    made, *_ = life
    assert "no luck" in made["failure"]


def test_procs_see_the_gpus_that_their_host_holds(life: Facts) -> None:
    made, *_ = life
    assert [place["CUDA_VISIBLE_DEVICES"] for place in made["where"]] == ["6"] * 4  # the first of either node
    assert made["free"]["GPU"] == ALL["GPU"] - 2


def test_procs_have_the_environment_and_the_directory_of_the_job(life: Facts) -> None:
    made, *_ = life
    assert {(place["OF_JOB"], place["cwd"]) for place in made["where"]} == {("yes", made["cwd"])}


def test_another_driver_finds_the_job_that_is_cached(life: Facts) -> None:
    made, found, *_ = life
    assert (found["apply_id"], found["session"]) == (made["apply_id"], made["session"])
    assert found["workers"] == made["workers"]
    assert found["sums"] == made["sums"]


def test_a_job_can_run_what_it_was_made_for_and_nothing_else(life: Facts) -> None:
    _, found, *_ = life
    assert found["can_run"]
    assert not any(found["can_run_other"].values())


def test_a_job_whose_cluster_cannot_be_reached_can_run_nothing_and_is_not_called_killed(life: Facts) -> None:
    made, *_ = life
    assert not made["unreachable"]["can_run"]
    assert "ConnectionError: the job's Ray cluster at '127.0.0.1:1' cannot be reached" in made["unreachable"]["kill"]


def test_a_killed_worker_is_told_by_its_exit(life: Facts) -> None:
    _, _, lost, _ = life
    assert lost["exit"] == "killed by SIGKILL"


@pytest.mark.slow
def test_a_killed_worker_is_told_by_monarchs_supervision_too(nodes: Nodes) -> None:
    [lost] = told(ran(str(DRIVER), "lose", nodes.address, ""))
    assert lost["exit"] == "killed by SIGKILL"
    assert lost["supervision"].startswith("SupervisionError: ")


def test_a_job_without_one_of_its_hosts_can_run_nothing_and_says_why(life: Facts) -> None:
    _, _, lost, _ = life
    assert not lost["can_run"]
    assert "has lost hosts" in lost["state_again"]
    assert "trainers/1 killed by SIGKILL" in lost["state_again"]


def test_the_other_hosts_go_on(life: Facts) -> None:
    _, _, lost, _ = life
    states = {name: worker["state"] for name, worker in lost["workers"].items()}
    assert states == {"dataloaders/0": "RUNNING", "trainers/0": "RUNNING", "trainers/1": "EXITED"}


def test_a_job_that_is_killed_is_gone_with_its_session(life: Facts) -> None:
    *_, ended = life
    assert ended["sessions"] == []
    assert ended["again"] == "nothing, but None"
    assert not ended["can_run"]


def test_a_job_in_a_session_that_is_there_leaves_it_as_it_was(shared_session: dict[str, Any]) -> None:
    assert shared_session["answer"] == 0
    assert shared_session["left"] == {"other": "RUNNING"}


def test_a_job_whose_session_was_ended_by_others_is_killed_without_an_error(shared_session: dict[str, Any]) -> None:
    assert shared_session["session_ended"] == "nothing, but None"


@pytest.mark.parametrize(
    "way, told",
    [
        ("waits", "needs GPU 64"),
        ("too_many", "STRICT_SPREAD needs 9 nodes"),
        ("no_python", "/no/python"),
        ("no_monarch", "this is not it"),
        ("script", "RayJob runs no client script"),
        ("transport", "RayJob(transport=...)"),
    ],
)
def test_a_job_that_cannot_be_says_why(shared_session: dict[str, Any], way: str, told: str) -> None:
    assert shared_session[way].startswith("RuntimeError: ")
    assert told in shared_session[way]


def test_workers_of_a_job_that_could_not_be_are_ended(shared_session: dict[str, Any]) -> None:
    assert shared_session["ended"] == ["other"]


@pytest.mark.parametrize(
    "way, told",
    [
        ("no mapping", "TypeError: meshes must be a mapping"),
        ("no number", "TypeError: meshes must map names to numbers"),
        ("no host", "ValueError: meshes['trainers'] must be 1 or more"),
        ("no mesh", "ValueError: meshes must name at least one"),
        ("no identifier", "ValueError: meshes has 'my trainers'"),
        ("no placement", "TypeError: placement must be a Placement"),
        ("no such mesh", "ValueError: placement has 'trainer'"),
        ("not detached", "ValueError: detached=False"),
    ],
)
def test_bad_arguments_are_refused(shared_session: dict[str, Any], way: str, told: str) -> None:
    assert shared_session["refused"][way].startswith(told)


def test_a_job_that_is_not_detached_ends_with_its_driver(nodes: Nodes) -> None:
    command = [sys.executable, str(DRIVER), "bound", nodes.address, ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        assert driver.stdout is not None
        [facts] = told(next(line for line in driver.stdout if line.startswith("{")))
        assert all(map(running, facts["pids"]))
        os.kill(driver.pid, signal.SIGKILL)
    until(lambda: not any(map(running, facts["pids"])), "the workers are gone", DEADLINE)


def test_the_example_computes_on_two_nodes(nodes: Nodes) -> None:
    output = ran(str(EXAMPLES / "monarch_mesh.py"), RAY_ADDRESS=nodes.address)
    assert output.splitlines()[-1] == "4 actors: pi is about 3.141"


@pytest.mark.slow
def test_monarchs_spmd_finds_the_same_losses_as_torchrun(nodes: Nodes, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4")
    expected = ran(*torchrun, str(EXAMPLES / "scripts" / "ddp.py"), "--checkpoint", str(tmp_path / "checkpoint"))
    output = ran(str(EXAMPLES / "monarch_ddp.py"), RAY_ADDRESS=nodes.address)
    steps = [line for line in output.splitlines() if line.startswith("step ")]
    assert steps == expected.splitlines()
    assert len(steps) == 5
