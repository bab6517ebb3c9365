"""Distributed PyTorch: a script that was written for torchrun, and a function, in four ranks on two nodes."""

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from ray_launcher import RayProcLauncher
from ray_launcher.integrations import torch as distributed

SCRIPT = Path(__file__).parent / "scripts" / "ddp.py"


def mean_rank() -> float:
    """The same in every rank: they talk to each other."""
    dist.init_process_group("gloo")
    total = torch.tensor(float(os.environ["RANK"]))
    dist.all_reduce(total)
    dist.destroy_process_group()
    return float(total) / int(os.environ["WORLD_SIZE"])


with RayProcLauncher() as launcher, tempfile.TemporaryDirectory() as directory:
    checkpoint = f"{directory}/checkpoint"
    distributed.run(SCRIPT, "--checkpoint", checkpoint, nnodes=2, nproc_per_node=2, max_restarts=3, launcher=launcher)
    results = distributed.run(mean_rank, nnodes=2, nproc_per_node=2, launcher=launcher)
    print([result.value for result in results])
