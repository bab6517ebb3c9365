"""A gang: four ranks in two groups, placed at once, each with torchrun's variables; then one that fails together."""

import dataclasses

from ray_launcher import LaunchOptions, RayProcLauncher

hello = LaunchOptions(program="sh", args=["-c", "echo rank $RANK of $WORLD_SIZE, local rank $LOCAL_RANK"])


def unlucky(rank: int) -> LaunchOptions:
    """Rank 2 fails; the others would run for hours."""
    return dataclasses.replace(hello, args=["-c", "exit 3" if rank == 2 else "exec sleep 9999"])


with RayProcLauncher() as launcher:
    gang = launcher.launch_gang("hello", hello, nnodes=2, nproc_per_node=2)
    print(gang.wait())
    for rank in gang.ranks:
        print(*launcher.logs(rank.proc_id))
    print(launcher.launch_gang("unlucky", unlucky, nnodes=2, nproc_per_node=2).wait())
