"""Options of the command line for how many procs there are, and whether they are a gang."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import click

from ray_launcher.cli.options import together

_PerNode = int | Literal["gpu", "cpu"]

_STRATEGIES = ("SPREAD", "PACK", "STRICT_PACK", "STRICT_SPREAD")
#: What `launch_gang` takes; said here before a cluster is looked for.
_MOST = 100_000
#: Each way to say how many, as a user writes it.
_WAYS = {"nprocs": "-n", "job": "-j", "nnodes": "--nnodes", "nproc_per_node": "--nproc-per-node"}


@dataclass(frozen=True)
class Shape:
    """A gang: groups ("nodes") of procs. nproc: of a group; "gpu" or "cpu" for as many as the smallest node has.

    min_nodes: with how few it makes do, if not with nnodes only.
    """

    nnodes: int
    nproc: _PerNode
    strategy: Literal["SPREAD", "PACK", "STRICT_PACK", "STRICT_SPREAD"] = "SPREAD"
    fail_fast: bool = True
    max_restarts: int = 0
    restart_delay: float = 10
    min_nodes: int | None = None


def _per_node(value: str) -> _PerNode:
    kinds: dict[str, _PerNode] = {"gpu": "gpu", "cpu": "cpu"}
    if value in kinds:
        return kinds[value]
    if not re.fullmatch("[1-9][0-9]{0,5}", value):
        raise click.BadParameter(f"{value!r} is not a number of procs; write 1 or more, or gpu, or cpu")
    return int(value)


def _nodes(value: str) -> tuple[int | None, int]:
    """(the fewest, the most)."""
    found = re.fullmatch("([1-9][0-9]{0,5})(?::([1-9][0-9]{0,5}))?", value)
    fewest, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if found is None or fewest > most:
        raise click.BadParameter(f"{value!r} is no number of nodes; write 1 or more, or FEWEST:MOST, as in 2:4")
    return (fewest if found[2] else None), most


def _job(value: str) -> tuple[int, _PerNode]:
    found = re.fullmatch("([1-9][0-9]{0,5})x([1-9][0-9]{0,5}|gpu|cpu)", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no gang; write NODESxPROCS, 1 or more of each, as in 2x4 or 2xgpu")
    return int(found[1]), _per_node(found[2])


#: Add the options to a command, which gets them as keywords for `shape_of`.
gang_options = together(
    click.option("-n", "nprocs", type=click.IntRange(min=1), metavar="N", help="Procs to start.  [default: 1]"),
    click.option(
        "-j",
        "job",
        type=_job,
        metavar="NxM",
        help="Start a gang instead: N nodes with M procs each. M may be gpu or cpu, for as many as each node has.",
    ),
    click.option(
        "--nnodes",
        type=_nodes,
        metavar="N",
        help="The same in torchrun's words; FEWEST:MOST for as many as there is room for.  [default: 1]",
    ),
    click.option(
        "--nproc-per-node", type=_per_node, metavar="M", help="With --nnodes: a number, gpu or cpu.  [default: 1]"
    ),
    click.option(
        "--strategy",
        type=click.Choice(_STRATEGIES),
        metavar="STRATEGY",
        help="How the N of a gang are put on the cluster's nodes: SPREAD, PACK, STRICT_SPREAD (each on one of its own),"
        " or STRICT_PACK (all on one).  [default: SPREAD]",
    ),
    click.option("--no-fail-fast", is_flag=True, help="Let the others of a gang run on when one fails."),
)


def shape_of(options: Mapping[str, Any]) -> Shape | None:
    """The gang that is asked for, if one is. Raises `click.UsageError`."""
    given = [name for name in _WAYS if options[name] is not None]
    if len(given) > 1 and given != ["nnodes", "nproc_per_node"]:
        first, second = (_WAYS[name] for name in given[:2])
        raise click.UsageError(f"{first} and {second} both say how many procs there are; give one of them")
    if not given or given == ["nprocs"]:
        for name, option in (("strategy", "--strategy"), ("no_fail_fast", "--no-fail-fast")):
            if options[name]:
                raise click.UsageError(f"{option} is for a gang; give -j NxM, or --nnodes, instead of -n")
        return None
    fewest, most = options["nnodes"] or (None, 1)
    nnodes, nproc = options["job"] or (most, options["nproc_per_node"] or 1)
    if isinstance(nproc, int) and nnodes * nproc > _MOST:
        raise click.UsageError(f"{nnodes} x {nproc} are {nnodes * nproc} procs; a gang has {_MOST} at most")
    fail_fast = not options["no_fail_fast"]
    return Shape(nnodes, nproc, options["strategy"] or "SPREAD", fail_fast, min_nodes=fewest)
