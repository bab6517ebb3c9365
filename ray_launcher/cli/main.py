"""The command's entry: its group of verbs, and what their errors and exit codes look like from a shell."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

import ray_launcher
from ray_launcher.cli.outcome import LAUNCHER_ERROR
from ray_launcher.cli.run import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ray_launcher.__version__, prog_name="ray-launcher")
def cli() -> None:
    """Start programs on the nodes of a Ray cluster, and learn how each one ended."""


cli.add_command(run)


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
