"""Train with DistributedDataParallel over gloo, as torchrun runs it.

It finds its rank in the environment, and goes on from its checkpoint when it is started again.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    """Rank 0 prints the loss of every step, and keeps the checkpoint."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a file that every rank can read")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two steps")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    first = 0
    if options.checkpoint.exists():
        saved = torch.load(options.checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]

    for step in range(first, options.steps):
        inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(step * world + rank))
        loss = torch.nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach()
        dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step}: loss {mean / world:.6f}", flush=True)
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            part = options.checkpoint.with_suffix(".part")
            torch.save(states, part)
            part.replace(options.checkpoint)
        time.sleep(options.pause)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
