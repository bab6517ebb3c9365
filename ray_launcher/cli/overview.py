"""`ray-launcher sessions`, `events` and `down`: sessions as a whole."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import click

from ray_launcher import ProcEvent, RayProcLauncher, list_sessions
from ray_launcher.cli import show
from ray_launcher.cli.limits import time_option
from ray_launcher.cli.sessions import address_option, cluster, open_sessions, session_name, session_options, verb

_SESSIONS = """List the sessions of the cluster: detached ones, and those of drivers that run.

\b
Examples:
  ray-launcher sessions
  ray-launcher sessions --json
"""

_EVENTS = """Show every change of a proc's state, one JSON object a line: what is remembered, or with -f from now on.

\b
Examples:
  ray-launcher events
  ray-launcher events -f | jq -r 'select(.state == "EXITED") | .proc_id + ": " + .result.text'
"""

_DOWN = """End sessions with all their procs, and forget them: SIGTERM, and SIGKILL after --time.

\b
Examples:
  ray-launcher down default
  ray-launcher down --all -t 30
"""


@verb("sessions", "List sessions.", _SESSIONS)
@click.option("--json", "json_", is_flag=True, help="As a JSON array.")
@session_options
def sessions(*, json_: bool, session: str | None, address: str | None) -> None:
    """See `_SESSIONS`."""
    with cluster(address):
        found = [each for each in list_sessions() if session in (None, each.name)]
        if json_:
            show.as_json(found)
            return
        rows = []
        for each in found:
            counts = each.counts or {}
            ended = counts.get("EXITED", 0)
            kind = {True: "yes", False: "no", None: ""}[each.detached]
            living = "does not answer" if each.counts is None else str(sum(counts.values()) - ended)
            rows.append([each.name, kind, show.ago(each.created_at), living, str(ended)])
        show.table(["SESSION", "DETACHED", "CREATED", "LIVING", "ENDED"], rows)


@verb("events", "Show the changes of procs' states.", _EVENTS)
@click.option("-f", "--follow", is_flag=True, help="Show those that come, until the sessions end.")
@click.option("--json", "json_", is_flag=True, hidden=True)
@session_options
def events(*, follow: bool, json_: bool, session: str | None, address: str | None) -> None:  # noqa: ARG001  # always
    """See `_EVENTS`."""
    with cluster(address):
        launchers = open_sessions(session)
        if not follow:
            past = [(launcher, event) for launcher in launchers for event in launcher.events(follow=False)]
            past.sort(key=lambda each: each[1].when)
            show.as_json_lines(_facts(launcher, event) for launcher, event in past)
            return
        for launcher, event in _merged(launchers):
            show.as_json_lines([_facts(launcher, event)])


@verb("down", "End sessions.", _DOWN)
@click.argument("names", nargs=-1, metavar="SESSION...", type=session_name)
@click.option("-a", "--all", "everything", is_flag=True, help="All detached ones.")
@time_option
@click.option("--force", is_flag=True, help="Also one whose driver runs.")
@click.option("--json", "json_", is_flag=True, help="The names, as a JSON array.")
@address_option
def down(  # one argument per option
    *, names: Sequence[str], everything: bool, grace: float, force: bool, json_: bool, address: str | None
) -> None:
    """See `_DOWN`."""
    if not names and not everything:
        raise click.UsageError("name a session, or --all; see `ray-launcher sessions`", click.get_current_context())
    with cluster(address):
        found = [launcher for name in names for launcher in open_sessions(name)]
        if everything:
            found += [launcher for launcher in open_sessions(None) if launcher.detached]
        owned = [launcher.session for launcher in found if not launcher.detached]
        if owned and not force:
            raise click.ClickException(
                f"a driver runs session {owned[0]!r}, which ends with it; use --force to end it before"
            )
        for launcher in found:
            launcher.end(grace)
        if json_:
            show.as_json([launcher.session for launcher in found])
        else:
            for launcher in found:
                click.echo(launcher.session)


def _facts(launcher: RayProcLauncher, event: ProcEvent) -> dict[str, object]:
    return {"session": launcher.session, **show.plain(event)}


def _merged(launchers: Sequence[RayProcLauncher]) -> Iterator[tuple[RayProcLauncher, ProcEvent]]:
    """The events of all, as they come, until the last session has ended."""
    mail: queue.Queue[tuple[RayProcLauncher, ProcEvent | None]] = queue.Queue()

    def read(launcher: RayProcLauncher) -> None:
        try:
            for event in launcher.events():
                mail.put((launcher, event))
        finally:
            mail.put((launcher, None))

    for launcher in launchers:
        threading.Thread(target=read, args=(launcher,), name="events", daemon=True).start()
    left = len(launchers)
    while left:
        launcher, event = mail.get()
        if event is None:
            left -= 1
        else:
            yield launcher, event
