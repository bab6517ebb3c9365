"""The ranks of a gang: how many, how they sit on nodes, and what they find in their environment. Standard library only.

Ranks are contiguous per node: node 0 has the local ranks 0 to nproc-1, and so on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias, get_args

#: Begins the reason of a rank that had no part in the last attempt of a gang of a flexible size.
NOT_NEEDED = "not needed: "
Strategy: TypeAlias = Literal["SPREAD", "PACK", "STRICT_PACK", "STRICT_SPREAD"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One gang. uid: its own for ever; gang_id: its name.  grace: seconds from TERM to KILL after the first failure.

    strategy: Ray's word for how "nodes", the groups of nproc ranks, are put on the nodes of the cluster.
    min_nodes: with how few "nodes" it makes do; 0: with no fewer than nnodes.
    max_restarts, restart_delay: see `RayProcLauncher.launch_gang`.  solo: no gang, but one proc that may be restarted.
    """

    uid: str
    gang_id: str
    nnodes: int
    nproc: int
    strategy: Strategy = "SPREAD"
    fail_fast: bool = True
    grace: float = 10.0
    max_restarts: int = 0
    restart_delay: float = 10.0
    solo: bool = False
    min_nodes: int = 0

    @property
    def size(self) -> int:
        """How many ranks."""
        return self.nnodes * self.nproc


class Member(NamedTuple):
    """One rank of a gang. attempt: how often the gang has been restarted before."""

    shape: Shape
    rank: int
    attempt: int = 0

    @property
    def team(self) -> str:
        """The name of this attempt of the gang."""
        return f"{self.shape.uid}.{self.attempt}"

    @property
    def node(self) -> int:
        """The number of its "node"."""
        return self.rank // self.shape.nproc

    @property
    def local(self) -> int:
        """Its rank on that."""
        return self.rank % self.shape.nproc


def rank_env(member: Member, master_addr: str, master_port: int) -> dict[str, str]:
    """The variables that torchrun sets, and our own.

    Source: https://docs.pytorch.org/docs/stable/elastic/run.html. TORCHELASTIC_USE_AGENT_STORE is False: no agent keeps
    the store, rank 0 opens it at MASTER_PORT, as `init_process_group` does by itself.
    """
    shape, rank = member.shape, member.rank
    if shape.solo:
        return {"RAY_LAUNCHER_RESTART_COUNT": str(member.attempt)}
    numbers = {
        "RANK": rank,
        "LOCAL_RANK": member.local,
        "WORLD_SIZE": shape.size,
        "LOCAL_WORLD_SIZE": shape.nproc,
        "GROUP_RANK": member.node,
        "GROUP_WORLD_SIZE": shape.nnodes,
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": shape.size,
        "MASTER_PORT": master_port,
        "TORCHELASTIC_RESTART_COUNT": member.attempt,
        "TORCHELASTIC_MAX_RESTARTS": shape.max_restarts,
        "RAY_LAUNCHER_RESTART_COUNT": member.attempt,
        "RAY_LAUNCHER_RANK": rank,
        "RAY_LAUNCHER_NPROCS": shape.size,
    }
    return {
        **{name: str(number) for name, number in numbers.items()},
        "ROLE_NAME": "default",
        "MASTER_ADDR": master_addr,
        "TORCHELASTIC_RUN_ID": shape.uid,
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "RAY_LAUNCHER_GANG_ID": shape.gang_id,
    }


def gang_env(
    gang_id: str, rank: int, *, nnodes: int = 1, nproc_per_node: int = 1, max_restarts: int = 0
) -> dict[str, str | None]:
    """The variables that `RayProcLauncher.launch_gang` sets for a rank; None: the value is known only at the launch.

    Raises ValueError for a rank that such a gang does not have.
    """
    shape = Shape("", gang_id, nnodes, nproc_per_node, max_restarts=max_restarts)
    if not 0 <= rank < shape.size:
        raise ValueError(f"rank must be 0 to {shape.size - 1} in a gang of {nnodes} x {nproc_per_node}, not {rank}")
    at_launch = dict.fromkeys(("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"))
    return {**rank_env(Member(shape, rank), "", 0), **at_launch}


def for_all(per_rank: Mapping[str, float], nproc: int) -> dict[str, float]:
    """What so many ranks on one node need. Of GPUs, a share does not span two: a GPU holds as many as fit whole."""
    total = {name: quantity * nproc for name, quantity in per_rank.items()}
    share = per_rank.get("GPU", 0)
    if 0 < share < 1 and nproc > _per_device(share):
        total["GPU"] = math.ceil(nproc / _per_device(share))
    return total


def share_of(ids: list[str], per_rank: float, local: int) -> list[str]:
    """The devices of one rank among those of its node."""
    if per_rank < 1:
        return [ids[local // _per_device(per_rank)]] if per_rank else []
    return ids[int(per_rank) * local : int(per_rank) * (local + 1)]


def _per_device(share: float) -> int:
    return math.floor(1 / share + 1e-9)
