"""`ray-launcher reap`: leftovers of sessions that are over."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from ray_launcher import Leftover, find_leftovers
from ray_launcher import reap as end_all
from ray_launcher.cli import show
from ray_launcher.cli.connect import ConnectError, connect, leave
from ray_launcher.cli.sessions import cluster, session_options, verb

_REAP = """Find what sessions that are over have left, because everything that saw to it was killed, and remove it:
supervisors, procs and their directories, on this machine and on the nodes of the cluster; agents, keys and placement
groups in Ray. What it finds is shown first; nothing that lives is touched. Where no cluster runs it looks at this
machine alone. The exit code is 1 if something is left that should have gone.

\b
Examples:
  ray-launcher reap
  ray-launcher reap --yes --session train
  ray-launcher reap --json | jq -r '.found[].what'
"""


@verb("reap", "Remove leftovers of sessions that are over.", _REAP)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "json_", is_flag=True, help="As JSON; without --yes what is found is only told.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="For agents whose session has just ended to leave by themselves.",
)
@session_options
def reap(yes: bool, json_: bool, wait: float, session: str | None, address: str | None) -> None:
    """See `_REAP`."""
    with _whatever_there_is(address):
        found = find_leftovers(session, wait)
        agreed = bool(found) and (yes or (not json_ and _agreed(found)))
        left = end_all(found) if agreed else []
        if json_:
            show.as_json({"found": found, "reaped": agreed, "left": left})
        elif not found:
            click.echo("nothing is left over")
        elif agreed:
            if yes:
                _show(found)
            click.echo(f"reaped {len(found) - len(left)} of {len(found)}")
            for each in left:
                click.echo(f"still there: {each.kind} {each.what}", err=True)
        leave(1 if left else 0)


@contextmanager
def _whatever_there_is(address: str | None) -> Iterator[None]:
    """Connected to the cluster that is asked for, or to a running one, or to none."""
    if address is None and not os.environ.get("RAY_ADDRESS"):
        try:
            connect(None, start=False)
        except ConnectError:
            click.echo("ray-launcher: no cluster runs here: looking at this machine alone", err=True)
            yield
            return
    with cluster(address):
        yield


def _agreed(found: Sequence[Leftover]) -> bool:
    """Whether whoever is asked wants that; nobody to ask is an error, once all has been shown."""
    _show(found)
    if not sys.stdin.isatty():
        raise click.ClickException("nobody can be asked here: add --yes to remove these")
    return click.confirm(f"Remove {'this' if len(found) == 1 else f'these {len(found)}'}?")


def _show(found: Sequence[Leftover]) -> None:
    rows = [[each.session, each.kind, each.where, each.what] for each in found]
    show.table(["SESSION", "KIND", "NODE", "WHAT"], rows)
