"""What `ray-launcher run --dry-run` prints: what would be launched, without a cluster, and without secrets."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping

from ray_launcher import LaunchOptions, Placement, gang_env
from ray_launcher.cli.gangs import Shape
from ray_launcher.cli.jobs import AGang, Several

_OURS = ("RAY_LAUNCHER_RANK", "RAY_LAUNCHER_NPROCS")
_SHOWN = {"program", "args", "env", "cwd", "placement", "tail_lines", "time_limit_grace"}
_AT_LAUNCH = "<known at the launch>"


def plan(job: Several | AGang) -> Iterator[str]:
    """The lines. Of variables that the user sets there are the names only."""
    if isinstance(job, Several):
        yield _count(len(job.launches), "proc") + (
            "; when one fails, the others run on" if len(job.launches) > 1 else ""
        )
        for proc_id, options in job.launches.items():
            ours = {name: options.env[name] for name in _OURS}
            yield from _proc(proc_id, options, ours)
        return
    yield _head(job.name, job.shape)
    options, size = _as_launched(job)
    if size is None:
        yield from _proc(f"{job.name}/RANK", options, {})
    else:
        nnodes, nproc = size
        for rank in range(nnodes * nproc):
            restarts = job.shape.max_restarts
            env = gang_env(job.name, rank, nnodes=nnodes, nproc_per_node=nproc, max_restarts=restarts)
            ours = {name: _AT_LAUNCH if value is None else value for name, value in env.items()}
            yield from _proc(f"{job.name}/{rank}  node {rank // nproc}", options, ours)


def _head(name: str, shape: Shape) -> str:
    nodes = _count(shape.nnodes, "node")
    if shape.min_nodes is not None:
        nodes = f"{shape.min_nodes} to {nodes}"
    end = "the first failure ends the others" if shape.fail_fast else "when one fails, the others run on"
    if shape.max_restarts:
        end += f"; then all are started again, up to {shape.max_restarts} times"
    if isinstance(shape.nproc, int):
        return f"gang {name}: {nodes} with {_count(shape.nproc, 'proc')} each, {shape.strategy}; {end}"
    as_many = f"as many procs each as the smallest that suits has {shape.nproc.upper()}s"
    return f"gang {name}: {nodes} with {as_many}, {shape.strategy}; {end}. Only the cluster tells how many that is"


def _as_launched(job: AGang) -> tuple[LaunchOptions, tuple[int, int] | None]:
    """The options, and the size if it is known."""
    shape, options, placement = job.shape, job.options, job.options.placement
    if isinstance(shape.nproc, int):
        return options, (shape.nnodes, shape.nproc)
    if shape.nproc == "gpu":
        placement = dataclasses.replace(placement, num_gpus=placement.num_gpus or 1)
    else:
        placement = dataclasses.replace(placement, num_cpus=placement.num_cpus or 1)
    return dataclasses.replace(options, placement=placement), None


def _proc(title: str, options: LaunchOptions, ours: Mapping[str, str]) -> Iterator[str]:
    yield title
    yield f"  runs   {shlex.join([options.program, *options.args])}"
    yield f"  in     {options.cwd or 'the directory of the node'}"
    yield f"  holds  {_holds(options.placement)}"
    if where := _where(options.placement):
        yield f"  where  {where}"
    if ours:
        yield f"  ranks  {' '.join(f'{name}={value}' for name, value in ours.items())}"
    if names := [name for name in options.env if name not in ours]:
        yield f"  env    {' '.join(names)}"
    if others := _others(options):
        yield f"  also   {others}"


def _holds(placement: Placement) -> str:
    held = {"CPU": placement.num_cpus, "GPU": placement.num_gpus, **placement.resources}
    found = [f"{quantity:g} {name}" for name, quantity in held.items() if quantity]
    if placement.memory:
        found.append(f"{placement.memory / 2**30:.1f} GiB memory")
    return ", ".join(found) or "nothing"


def _where(placement: Placement) -> str:
    found = [f"node {placement.node_id}"] if placement.node_id else []
    found += [f"{name}={value}" for name, value in placement.label_selector.items()]
    found += [f"GPUs as of {placement.gpu_mask}"] if placement.gpu_mask else []
    found += [f"within {placement.timeout:g} s"] if placement.timeout is not None else []
    return ", ".join(found)


def _others(options: LaunchOptions) -> str:
    plain = LaunchOptions(program=options.program)
    names = [each.name for each in dataclasses.fields(options) if each.name not in _SHOWN]
    changed = [name for name in names if getattr(options, name) != getattr(plain, name)]
    show = {"umask": oct}
    return ", ".join(f"{name}={show.get(name, repr)(getattr(options, name))}" for name in changed)


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"
