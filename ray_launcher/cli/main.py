"""The command's entry: its group of verbs, and what their errors and exit codes look like from a shell."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

import ray_launcher
from ray_launcher.cli.attach import attach
from ray_launcher.cli.completion import completion
from ray_launcher.cli.doctor import doctor
from ray_launcher.cli.ends import kill, rm, stop, wait
from ray_launcher.cli.exec import exec_
from ray_launcher.cli.logs import logs
from ray_launcher.cli.nodes import nodes
from ray_launcher.cli.outcome import LAUNCHER_ERROR
from ray_launcher.cli.overview import down, events, sessions
from ray_launcher.cli.ps import inspect, ps
from ray_launcher.cli.reap import reap
from ray_launcher.cli.rsh import rsh
from ray_launcher.cli.run import run
from ray_launcher.cli.top import top

#: What people try who know other tools.
_ALIASES = {"list": ["ps"], "status": ["ps", "-a"], "submit": ["run", "-d"], "cancel": ["stop"]}


class _Verbs(click.Group):
    """Knows other names for some, and what was meant by one that is misspelt."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        args = [*_ALIASES.get(args[0], args[:1]), *args[1:]]
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; see `ray-launcher --help`"
            raise click.UsageError(f"no verb {args[0]!r}{hint}", ctx) from error


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ray_launcher.__version__, prog_name="ray-launcher")
def cli() -> None:
    """Start programs on the nodes of a Ray cluster, and learn how each one ended."""


for _verb in (
    *(run, exec_, attach, ps, inspect, logs, wait, stop, kill, rm, sessions, events, down),
    *(top, nodes, doctor, reap, rsh, completion),
):
    cli.add_command(_verb)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. What is wrong with the command line itself, or with the launcher, gives 125."""
    _hold_standard_streams()
    try:
        code = cli.main(args, prog_name="ray-launcher", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = LAUNCHER_ERROR
    except (KeyboardInterrupt, click.Abort):
        code = 130
    sys.exit(code)


def _hold_standard_streams() -> None:
    """A stream that is closed becomes /dev/null: else the next file or socket that is opened would take its place."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
