"""`ray-launcher run`: its options, their checks, and the launches that they describe."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from ray_launcher import LaunchOptions, gang_env
from ray_launcher.cli.detached import launch
from ray_launcher.cli.dry import plan
from ray_launcher.cli.environment import environment_options, runtime_env, variables
from ray_launcher.cli.gangs import Shape, gang_options, shape_of
from ray_launcher.cli.jobs import AGang, Several, Target
from ray_launcher.cli.limits import grace_period, limit_fields, limit_options, once
from ray_launcher.cli.outcome import TAIL_LINES
from ray_launcher.cli.plugged import plugin_of, spawner_options
from ray_launcher.cli.resources import placement, resource_options
from ray_launcher.cli.restarts import restart_fields, restart_options
from ray_launcher.cli.running import Run
from ray_launcher.cli.sessions import DEFAULT, VARIABLE, default_session, session_name
from ray_launcher.cli.terminal import feed_of, stdin_fields, stdin_options

_HINT = (
    "Options of ray-launcher come first, then `--`, then PROGRAM with its own: ray-launcher run -n 4 -- PROGRAM ARGS..."
)

_HELP = """Run PROGRAM on the cluster, and show what it writes, as it comes.

\b
Examples:
  ray-launcher run -n 4 --env LR=0.1 -- python train.py --epochs 3
  ray-launcher run -j 2x4 --gpus 1 -- python train.py
  ray-launcher run -d --name web -- python -m http.server
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

With --spawner a plug-in starts the procs, in containers, say. What it makes of other options is its own affair; of what
they write, the last lines of stderr are shown, at their end.

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
@environment_options
@click.option(
    "--cwd",
    type=_text,
    metavar="DIR",
    help="Directory to run in, on each node; a relative one starts from here.  [default: the current one, or that of"
    " --working-dir]",
)
@click.option(
    "--grace",
    type=grace_period,
    default=10,
    metavar="SECONDS",
    help="Time between SIGTERM and SIGKILL when procs are terminated.  [default: 10]",
)
@stdin_options
@resource_options
@limit_options
@restart_options
@click.option(
    "-d",
    "--detach",
    is_flag=True,
    help="Print NAME and leave: the procs run on in their session, for `ps`, `logs`, `wait`, `stop` and the others.",
)
@click.option(
    "-S",
    "--session",
    type=session_name,
    envvar=VARIABLE,
    metavar="SESSION",
    help=f"Detached session to run in, made if need be.  [default: {VARIABLE}; with -d {DEFAULT}; else one of our own]",
)
@click.option(
    "--rm", "forget", is_flag=True, help="Once the procs have ended, neither remember them nor keep their logs."
)
@spawner_options
@click.option("--dry-run", is_flag=True, help="Print what would be launched, and launch nothing.")
@click.option(
    "--address", type=_text, metavar="ADDRESS", help="Cluster to use: HOST:PORT, auto, or local to start Ray."
)
@click.option(
    "--name",
    type=session_name,
    metavar="NAME",
    help="Procs are called NAME/RANK.  [default: run; in a detached session PROGRAM and some letters]",
)
@click.argument("program", type=_text)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(  # noqa: PLR0913  # one argument per option
    ctx: click.Context,
    /,
    *,
    nprocs: int | None,
    cwd: str | None,
    grace: float,
    dry_run: bool,
    address: str | None,
    name: str | None,
    detach: bool,
    session: str | None,
    program: str,
    args: Sequence[str],
    **others: Any,
) -> int:
    """See `_HELP`."""
    plugin = plugin_of(ctx, others)
    session = None if plugin is not None else session or (default_session() if detach else None)
    env = variables(others)
    fields = stdin_fields(others, env)
    target = Target(address, session, grace, runtime_env(others), plugin)
    try:
        shape = shape_of({"nprocs": nprocs, **others})
        restarts = restart_fields(others)
        if fields:
            _check_one(detach, bool(shape or (nprocs or 1) > 1 or restarts.get("max_restarts")))
        shared: dict[str, Any] = {
            "program": program,
            "args": args,
            "env_remove": others["env_remove"],
            "cwd": _directory(cwd, target),
            "tail_lines": TAIL_LINES,
            "placement": placement(others),
            "forget": others["forget"],
            "secrets": once("--secret", others["secret"]),
            **limit_fields(others, grace),
            **fields,
        }
        name = name or _default_name(program, session)
        if shape:
            job: AGang | Several = _gang(name, replace(shape, **restarts), grace, env, shared)
        else:
            job = _several(name, nprocs or 1, env, {**shared, **restarts})
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error), ctx) from error
    if dry_run:
        for line in plan(job):
            click.echo(os.fsencode(line))
        return 0
    if detach:
        launch(job, target)
        return 0
    return Run(job, target, feed_of(others)).execute()


def _check_one(detach: bool, several: bool) -> None:
    """Our stdin can be that of one proc only, while we are here."""
    what = "-i, -t and --stdin"
    if several:
        text = f"{what} are for one proc that is started once"
        raise click.UsageError(f"{text}; leave them out, or -n, -j, --nnodes, --nproc-per-node and --max-restarts")
    if detach:
        raise click.UsageError(f"{what} need a shell that stays; leave them out, or -d")


def _default_name(program: str, session: str | None) -> str:
    if session is None:
        return "run"
    shown = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(program)).strip("-._") or "run"  # noqa: PTH119  # any text
    return f"{shown[:40]}-{secrets.token_hex(2)}"


def _several(name: str, nprocs: int, env: Mapping[str, str], shared: Mapping[str, Any]) -> Several:
    def options(rank: int) -> LaunchOptions:
        ours = {"RAY_LAUNCHER_RANK": str(rank), "RAY_LAUNCHER_NPROCS": str(nprocs)}
        return LaunchOptions(env={**env, **ours}, **shared)

    return Several(name, {f"{name}/{rank}": options(rank) for rank in range(nprocs)})


def _gang(name: str, shape: Shape, grace: float, env: Mapping[str, str], shared: Mapping[str, Any]) -> AGang:
    for given in env.keys() & gang_env(name, 0).keys():
        raise click.BadParameter(f"each rank of a gang is given its own {given}; leave it out", param_hint="'--env'")
    return AGang(name, shape, LaunchOptions(env=env, **shared), grace)


def _directory(cwd: str | None, target: Target) -> str | None:
    """None for the node's own, or the plug-in's: where Ray brings one there, or the current directory was removed."""
    if target.spawner is not None or "working_dir" in (target.runtime_env or {}):
        return cwd
    try:
        return os.path.abspath(cwd or ".")  # noqa: PTH100  # pathlib keeps `..`
    except OSError:
        return None
