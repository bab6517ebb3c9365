"""`ray-launcher ps` and `inspect`: the procs of sessions."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ray_launcher import ProcInfo, RayProcLauncher
from ray_launcher.cli import show
from ray_launcher.cli.sessions import chosen, cluster, open_sessions, session_options, verb

_STATES = ["pending", "starting", "running", "terminating", "exited"]

_PS = """List procs: those that live, or with -a the ended ones too, as long as their session remembers them.

\b
Examples:
  ray-launcher ps
  ray-launcher ps -a --state exited --gang train
  ray-launcher ps --json | jq -r '.[].proc_id'
"""

_INSPECT = """Show all that is known of procs, as JSON. TARGET is the id of a proc, or the name of a gang or run.

\b
Examples:
  ray-launcher inspect train/0
  ray-launcher inspect train | jq '.[].node_ip'
"""


@verb("ps", "List procs.", _PS)
@click.option("-a", "--all", "ended", is_flag=True, help="Also those that have ended.")
@click.option(
    "--state", type=click.Choice(_STATES, case_sensitive=False), multiple=True, help="Only these. Repeatable."
)
@click.option("--gang", metavar="NAME", help="Only the ranks of this gang.")
@click.option("--node", metavar="NODE", help="Only those on this node: its id, the beginning of that, or its address.")
@click.option("--json", "json_", is_flag=True, help="All that is known, as a JSON array.")
@session_options
def ps(  # noqa: PLR0913  # one argument per option
    *,
    ended: bool,
    state: Sequence[str],
    gang: str | None,
    node: str | None,
    json_: bool,
    session: str | None,
    address: str | None,
) -> None:
    """See `_PS`."""
    states = {each.upper() for each in state}
    with cluster(address):
        found = [(launcher, info) for launcher in open_sessions(session) for info in launcher.procs()]
        if states:
            found = [each for each in found if each[1].state in states]
        elif not ended:
            found = [each for each in found if each[1].state != "EXITED"]
        if gang is not None:
            found = [each for each in found if each[1].gang_id == gang]
        if node is not None:
            found = [each for each in found if _is_on(each[1], node)]
        if json_:
            show.as_json([_facts(launcher, info) for launcher, info in found])
        else:
            _table(found)


@verb("inspect", "Show all that is known of procs.", _INSPECT)
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--json", "json_", is_flag=True, help="As it is: the output is JSON anyway.", hidden=True)
@session_options
def inspect(targets: Sequence[str], json_: bool, session: str | None, address: str | None) -> None:  # noqa: ARG001
    """See `_INSPECT`."""
    with cluster(address):
        show.as_json([_facts(launcher, info) for launcher, info in chosen(session, targets)])


def _facts(launcher: RayProcLauncher, info: ProcInfo) -> dict[str, object]:
    return {"session": launcher.session, **show.plain(info)}


def _is_on(info: ProcInfo, node: str) -> bool:
    return info.node_ip == node or (info.node_id or "").startswith(node)


def _table(found: Sequence[tuple[RayProcLauncher, ProcInfo]]) -> None:
    several = len({launcher.session for launcher, _ in found}) > 1
    headings = ["PROC", "STATE", "NODE", "PID", "STARTED", "RESTARTS", ""]
    rows = []
    for launcher, info in found:
        row = [
            info.proc_id,
            info.state,
            info.node_ip or "",
            str(info.pid or ""),
            show.ago(info.started_at),
            str(info.restarts or ""),
            show.outcome(info),
        ]
        rows.append([launcher.session, *row] if several else row)
    show.table(["SESSION", *headings] if several else headings, rows)
