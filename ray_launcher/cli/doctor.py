"""`ray-launcher doctor`: what on a cluster would bite, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ray_launcher import Diagnosis, Finding, examine_cluster
from ray_launcher.cli import show
from ray_launcher.cli.connect import leave
from ray_launcher.cli.sessions import address_option, cluster, verb

_DOCTOR = """Look at every node of the cluster for what would bite: versions that differ, processes that cannot be
reaped or read, limits that are low, disks that are full, clocks that are apart. Each finding says what to do. The exit
code is 1 if anything is wrong; what is only good to know is marked as a note.

\b
Examples:
  ray-launcher doctor
  ray-launcher doctor --json | jq -r '.findings[] | select(.wrong).what'
"""


@verb("doctor", "Find out what on the cluster would bite.", _DOCTOR)
@click.option("--json", "json_", is_flag=True, help="All that was found on the nodes, and what is wrong, as JSON.")
@click.option(
    "--timeout",
    type=click.FloatRange(1, 3600),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="For the nodes to answer.",
)
@address_option
def doctor(json_: bool, timeout: float, address: str | None) -> None:
    """See `_DOCTOR`."""
    with cluster(address):
        found = examine_cluster(timeout)
        if json_:
            show.as_json({"ok": found.ok, "findings": found.findings, "nodes": found.nodes})
        else:
            for line in report(found):
                click.echo(line)
        leave(0 if found.ok else 1)


def report(found: Diagnosis) -> list[str]:
    """In words. What several nodes have in common is told once."""
    alike: dict[tuple[str, str], list[Finding]] = {}
    for finding in found.findings:
        alike.setdefault((finding.check, finding.what), []).append(finding)
    silent = sum(finding.check == "answers" for finding in found.findings)
    count = len(found.nodes) + silent
    lines = []
    for findings in sorted(alike.values(), key=lambda findings: not findings[0].wrong):
        first = findings[0]
        lines += [
            f"{'wrong' if first.wrong else 'note'}: {first.check}: {first.what}",
            f"  on {_where(findings, count)}",
            f"  {first.remedy}",
        ]
    wrong = sum(findings[0].wrong for findings in alike.values())
    nodes = f"{count} node{'' if count == 1 else 's'}"
    return [*lines, f"{nodes} looked at: {f'{wrong} wrong' if wrong else 'nothing is wrong'}"]


def _where(findings: Sequence[Finding], count: int) -> str:
    if len(findings) == count and count > 1:
        return f"all {count} nodes"
    return ", ".join(f"{finding.ip} ({finding.node_id[:16]})" for finding in findings)
