"""Distributed PyTorch on two nodes: the same losses as under torchrun, also when a rank is killed in the middle."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path

import pytest
from node_rig import until
from ray_rig import DEADLINE, Nodes, pid_of, ran

from ray_launcher import Exited, RayProcLauncher
from ray_launcher.integrations import torch as distributed

pytest.importorskip("torch")
pytestmark = [pytest.mark.usefixtures("all_free"), pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "scripts" / "ddp.py"
STEPS = 5


def losses(output: str) -> dict[int, str]:
    """By step; a later one of the same step counts."""
    return {int(step): loss for step, loss in re.findall(r"step (\d+): loss (\S+)", output)}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What torchrun's ranks find."""
    checkpoint = tmp_path_factory.mktemp("torchrun") / "checkpoint"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4")
    found = losses(ran(*torchrun, str(SCRIPT), "--checkpoint", str(checkpoint), "--steps", str(STEPS)))
    assert sorted(found) == list(range(STEPS))
    return found


def test_the_example_finds_what_it_looks_for(nodes: Nodes) -> None:
    output = ran(str(EXAMPLES / "torch_ddp.py"), RAY_ADDRESS=nodes.address)
    assert output.splitlines()[-1] == "[1.5, 1.5, 1.5, 1.5]"


@pytest.mark.slow
def test_the_example_finds_the_same_losses_as_torchrun(nodes: Nodes, expected: dict[int, str]) -> None:
    assert losses(ran(str(EXAMPLES / "torch_ddp.py"), RAY_ADDRESS=nodes.address)) == expected


@pytest.mark.slow
def test_training_goes_on_from_its_checkpoint_when_a_rank_was_killed(
    shared: RayProcLauncher, expected: dict[int, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint"
    args = ("--checkpoint", str(checkpoint), "--steps", str(STEPS), "--pause", "0.5")
    results: list[distributed.RankResult] = []
    training = threading.Thread(
        target=lambda: results.extend(
            distributed.run(SCRIPT, *args, nnodes=2, nproc_per_node=2, max_restarts=1, restart_delay=0, launcher=shared)
        )
    )
    training.start()
    until(checkpoint.exists, "the first step is taken", DEADLINE)
    [victim] = [info for info in shared.procs() if info.proc_id.startswith("ddp.py-") and info.rank == 3]
    os.kill(pid_of(shared, victim.proc_id), signal.SIGKILL)
    training.join(DEADLINE)
    assert [result.exit.kind for result in results] == [Exited(0)] * 4
    [info] = [info for info in shared.procs() if info.proc_id == victim.proc_id]
    assert info.restarts == 1
    assert losses(capsys.readouterr().out) == expected


def _fails(text: str) -> None:
    if os.environ["RANK"] == "1":
        raise ValueError(text)


def test_a_rank_that_fails_is_told_with_its_last_words(shared: RayProcLauncher) -> None:
    _fails.__module__ = "__main__"  # what a module of its own defines would have to be on the nodes
    with pytest.raises(
        distributed.DistributedError, match=r"(?s)rank 1 of 2 exited with code 1\n.*ValueError: no luck"
    ) as caught:
        distributed.run(_fails, "no luck", nproc_per_node=2, show=False, launcher=shared)
    assert caught.value.cause == 1
    assert len(caught.value.results) == 2


def test_a_run_that_takes_too_long_is_ended(shared: RayProcLauncher, tmp_path: Path) -> None:
    script = tmp_path / "sleep.py"
    script.write_text("import time; time.sleep(9999)")
    with pytest.raises(TimeoutError):
        distributed.run(script, timeout=1, show=False, launcher=shared)
    until(lambda: not shared.active_procs, "all have ended", DEADLINE)


def test_a_module_is_run_with_its_arguments(shared: RayProcLauncher, capsys: pytest.CaptureFixture[str]) -> None:
    script = distributed.Script("json.tool", ["--help"], module=True)
    [result] = distributed.run(script, launcher=shared)
    assert result.exit.ok
    assert "[0] usage:" in capsys.readouterr().out
