"""`ray-launcher run`: its options, their checks, and the launches that they describe."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from ray_launcher import LaunchOptions, gang_env
from ray_launcher.cli.dry import plan
from ray_launcher.cli.gangs import Shape, gang_options, shape_of
from ray_launcher.cli.jobs import AGang, Several
from ray_launcher.cli.limits import limit_fields, limit_options
from ray_launcher.cli.options import variable
from ray_launcher.cli.outcome import TAIL_LINES
from ray_launcher.cli.resources import placement, resource_options
from ray_launcher.cli.restarts import restart_fields, restart_options
from ray_launcher.cli.running import Run
from ray_launcher.cli.terminal import feed_of, stdin_fields, stdin_options

_HINT = (
    "Options of ray-launcher come first, then `--`, then PROGRAM with its own: ray-launcher run -n 4 -- PROGRAM ARGS..."
)

_HELP = """Run PROGRAM on the cluster, and show what it writes, as it comes.

\b
Examples:
  ray-launcher run -n 4 --env LR=0.1 -- python train.py --epochs 3
  ray-launcher run -j 2x4 --gpus 1 -- python train.py
  ray-launcher run -it --gpus 1 -- bash

The cluster is that of --address or RAY_ADDRESS, else one that runs on this machine (`ray start`), else Ray is started
here, and stopped at the end.

stdout goes to stdout and stderr to stderr: untouched for one proc; in whole lines behind "[RANK] " for several. PROGRAM
writes to files, so it may buffer, as it does in a pipe. Its stdin is empty, unless -i or --stdin give one proc
something to read. With -t it writes to a terminal, and with -it our keys go there, Ctrl-C among them.

Each proc finds its rank, 0 to N-1, in RAY_LAUNCHER_RANK, and N in RAY_LAUNCHER_NPROCS. When one of -n fails, the others
run on.

With -j, or torchrun's --nnodes and --nproc-per-node, the procs are a gang: they get their places all at once, or wait;
they find what torchrun sets (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT ...); and the first to fail ends
the others, with SIGKILL after --grace. Each sees the GPUs of all of its gang on its node.

With --max-restarts a proc that fails is started again, and a gang as a whole, on nodes that may be others. What each
start writes is shown; the exit code is that of the last one.

What --cpus, --gpus, --memory and --resources name is held by each proc while it runs. While it is not to be had, a line
on stderr says what is waited for.

Ctrl-C, SIGTERM or SIGHUP terminates the procs; a second Ctrl-C kills them; a third stops waiting for anything.

A proc that reaches its time limit is told at the end, with how it ended, which its exit code tells too.

Exit code: PROGRAM's own, or 128+N when signal N killed it; 127 when it was not found, 126 when it could not be
executed, 125 for any other failure to run it. With several procs it is that of the first to fail, which is told last,
and in a gang with its node. 141 when the reader of our output has gone, as after `| head`.
"""


class _RunCommand(click.Command):
    """Tells how to separate our options from the program's where they were mixed up."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except (click.NoSuchOption, click.MissingParameter) as error:
            raise click.UsageError(f"{error.format_message()}\n{_HINT}", ctx) from None


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:  # NaN too
        raise click.BadParameter(f"{value!r} is not a number of seconds; write 0 or more, or inf to never kill")
    return seconds


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise click.BadParameter(f"{value!r} is not a name; use letters, digits, '.', '_' and '-', at most 64")
    return value


def _text(value: str) -> str:
    if not value:
        raise click.BadParameter("it is empty")
    return value


@click.command(
    cls=_RunCommand,
    help=_HELP,
    short_help="Run a program on the cluster, in one process or many.",
    context_settings={"allow_interspersed_args": False, "max_content_width": 120},
    options_metavar="[OPTIONS] --",
    no_args_is_help=True,
)
@gang_options
@click.option(
    "-e",
    "--env",
    type=variable,
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Set a variable for PROGRAM, over those of the node; without a value, to the one it has here. Repeatable.",
)
@click.option(
    "--env-remove",
    type=_text,
    multiple=True,
    metavar="GLOB",
    help="Take the node's variables of this name away, as in 'SLURM_*'. Repeatable.",
)
@click.option(
    "--cwd",
    type=_text,
    metavar="DIR",
    help="Directory to run in, on each node; a relative one starts from here.  [default: the current one]",
)
@click.option(
    "--grace",
    type=_seconds,
    default=10,
    metavar="SECONDS",
    help="Time between SIGTERM and SIGKILL when procs are terminated.  [default: 10]",
)
@stdin_options
@resource_options
@limit_options
@restart_options
@click.option("--dry-run", is_flag=True, help="Print what would be launched, and launch nothing.")
@click.option(
    "--address", type=_text, metavar="ADDRESS", help="Cluster to use: HOST:PORT, auto, or local to start Ray."
)
@click.option("--name", type=_name, default="run", metavar="NAME", help="Procs are called NAME/RANK.  [default: run]")
@click.argument("program", type=_text)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(  # noqa: PLR0913  # one argument per option
    ctx: click.Context,
    /,
    *,
    nprocs: int | None,
    env: Sequence[tuple[str, str]],
    env_remove: Sequence[str],
    cwd: str | None,
    grace: float,
    dry_run: bool,
    address: str | None,
    name: str,
    program: str,
    args: Sequence[str],
    **others: Any,
) -> int:
    """See `_HELP`."""
    variables = dict(env)
    fields = stdin_fields(others, variables)
    try:
        shape = shape_of({"nprocs": nprocs, **others})
        restarts = restart_fields(others)
        if fields and (shape or (nprocs or 1) > 1 or restarts.get("max_restarts")):
            text = "-i, -t and --stdin are for one proc that is started once"
            raise click.UsageError(f"{text}; leave them out, or -n, -j, --nnodes, --nproc-per-node and --max-restarts")
        shared: dict[str, Any] = {
            "program": program,
            "args": args,
            "env_remove": env_remove,
            "cwd": _directory(cwd),
            "tail_lines": TAIL_LINES,
            "placement": placement(others),
            **limit_fields(others, grace),
            **fields,
        }
        if shape:
            job: AGang | Several = _gang(name, replace(shape, **restarts), grace, variables, shared)
        else:
            job = _several(name, nprocs or 1, variables, {**shared, **restarts})
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error), ctx) from error
    if dry_run:
        for line in plan(job):
            click.echo(os.fsencode(line))
        return 0
    try:
        feed = feed_of(others)
    except OSError as error:
        raise click.BadParameter(f"cannot open it: {error.strerror}", param_hint="'--stdin'") from error
    return Run(job, address, grace, feed).execute()


def _several(name: str, nprocs: int, env: Mapping[str, str], shared: Mapping[str, Any]) -> Several:
    def options(rank: int) -> LaunchOptions:
        ours = {"RAY_LAUNCHER_RANK": str(rank), "RAY_LAUNCHER_NPROCS": str(nprocs)}
        return LaunchOptions(env={**env, **ours}, **shared)

    return Several({f"{name}/{rank}": options(rank) for rank in range(nprocs)})


def _gang(name: str, shape: Shape, grace: float, env: Mapping[str, str], shared: Mapping[str, Any]) -> AGang:
    for given in env.keys() & gang_env(name, 0).keys():
        raise click.BadParameter(f"each rank of a gang is given its own {given}; leave it out", param_hint="'--env'")
    return AGang(name, shape, LaunchOptions(env=env, **shared), grace)


def _directory(cwd: str | None) -> str | None:
    """None where the current directory has been removed: the node's own then."""
    try:
        return os.path.abspath(cwd or ".")  # noqa: PTH100  # pathlib keeps `..`
    except OSError:
        return None
