"""What a gang is to be, from what the user asked for: its shape and the options of every rank, all checked."""

from __future__ import annotations

import dataclasses
import operator
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal

import ray

from ray_launcher import checks
from ray_launcher.cluster.nodes import fitting, living_nodes
from ray_launcher.options import LaunchOptions, Placement, check_restart_delay, check_timeout
from ray_launcher.ranks import STRATEGIES, Shape, Strategy, gang_env

#: More ranks than this are a slip of the pen.
_MOST = 100_000
_PER_NODE = {"gpu": ("GPU", "num_gpus"), "cpu": ("CPU", "num_cpus")}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A gang to be launched. options: by rank."""

    shape: Shape
    options: list[LaunchOptions]


def plan_gang(  # noqa: PLR0913, PLR0917  # one argument per one of launch_gang's
    gang_id: str,
    opts: LaunchOptions | Callable[[int], LaunchOptions],
    nnodes: int | tuple[int, int],
    nproc_per_node: int | Literal["gpu", "cpu"],
    strategy: Strategy,
    fail_fast: bool,
    grace: float,
    max_restarts: int,
    restart_delay: float,
) -> Plan:
    """See `RayProcLauncher.launch_gang`. Raises TypeError and ValueError, naming the argument."""
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(map(repr, STRATEGIES))}, not {strategy!r}")
    if not isinstance(fail_fast, bool):
        raise TypeError(f"fail_fast must be True or False, not {fail_fast!r}")
    grace = check_timeout("grace", grace)
    max_restarts = checks.count("max_restarts", max_restarts)
    restart_delay = check_restart_delay("restart_delay", restart_delay)
    min_nodes, nnodes = _range_of(nnodes)
    change: dict[str, Any] = {}
    if isinstance(nproc_per_node, str):
        first = _options_of(opts, 0)
        nproc, change = _as_many_as(nproc_per_node, first.placement)
    else:
        nproc = _count("nproc_per_node", nproc_per_node)
    if nnodes * nproc > _MOST:
        raise ValueError(f"nnodes x nproc_per_node is {nnodes * nproc} ranks; at most {_MOST:,} are supported")
    shape = Shape(
        uid=uuid.uuid4().hex,
        gang_id=gang_id,
        nnodes=nnodes,
        nproc=nproc,
        strategy=strategy,
        fail_fast=fail_fast,
        grace=grace,
        max_restarts=max_restarts,
        restart_delay=restart_delay,
        min_nodes=min_nodes,
    )
    ranks = [_options_of(opts, rank) for rank in range(shape.size)]
    ours = gang_env(gang_id, 0, nnodes=nnodes, nproc_per_node=nproc)
    for rank, each in enumerate(ranks):
        if each.placement != ranks[0].placement:
            raise ValueError(f"opts({rank}).placement differs from that of rank 0; a gang has one placement")
        _check_options(each, ours)
    if change:
        placement = dataclasses.replace(ranks[0].placement, **change)
        ranks = [dataclasses.replace(each, placement=placement) for each in ranks]
    return Plan(shape, ranks)


def _check_options(opts: LaunchOptions, ours: Mapping[str, str | None]) -> None:
    if opts.max_restarts:
        raise ValueError("LaunchOptions.max_restarts is for single procs; give launch_gang(max_restarts=...)")
    taken = sorted(opts.env.keys() & ours.keys())
    if taken:
        raise ValueError(f"LaunchOptions.env[{taken[0]!r}] is set by the gang itself; leave it out")


def _options_of(opts: object, rank: int) -> LaunchOptions:
    made = opts(rank) if callable(opts) else opts
    if not isinstance(made, LaunchOptions):
        what = f"opts({rank})" if callable(opts) else "opts"
        raise TypeError(f"{what} must be a LaunchOptions, not {type(made).__name__}")
    return made


def _range_of(nnodes: object) -> tuple[int, int]:
    """(0, n) for a number."""
    if not isinstance(nnodes, tuple):
        return 0, _count("nnodes", nnodes)
    if len(nnodes) != 2:
        raise ValueError(f"nnodes must be a number or (fewest, most), not {nnodes!r}")
    fewest, most = _count("nnodes[0]", nnodes[0]), _count("nnodes[1]", nnodes[1])
    if fewest > most:
        raise ValueError(f"nnodes must be (fewest, most), not {nnodes!r}")
    return fewest, most


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    count = operator.index(value)
    if count < 1:
        raise ValueError(f"{name} must be 1 or more, not {count}")
    return count


def _as_many_as(kind: str, placement: Placement) -> tuple[int, dict[str, Any]]:
    """How many GPUs or CPUs every node has that suits, and what a rank must hold then."""
    if kind not in _PER_NODE:
        raise ValueError(f"nproc_per_node must be a number, 'gpu' or 'cpu', not {kind!r}")
    resource, field = _PER_NODE[kind]
    resources = {facts["NodeID"]: facts["Resources"] for facts in ray.nodes()}  # type: ignore[no-untyped-call]
    counts = [int(resources[node.node_id].get(resource, 0)) for node in fitting(placement, living_nodes())]
    counts = [count for count in counts if count]
    if not counts:
        raise ValueError(f"nproc_per_node={kind!r}: no node of the cluster that suits has any {resource}")
    return min(counts), {} if getattr(placement, field) else {field: 1}
