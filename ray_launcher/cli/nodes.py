"""`ray-launcher nodes`: the nodes of the cluster, and who runs there."""

from __future__ import annotations

import click

from ray_launcher import NodeSummary, list_nodes
from ray_launcher.cli import show
from ray_launcher.cli.sessions import address_option, cluster, verb

_NODES = """List the living nodes of the cluster: what Ray has to give there, what of it is free, and how many procs of
how many sessions run there.

\b
Examples:
  ray-launcher nodes
  ray-launcher nodes --json | jq -r '.[] | select(.gpus_free > 0).ip'
"""


@verb("nodes", "List nodes.", _NODES)
@click.option("--json", "json_", is_flag=True, help="All that is known, as a JSON array.")
@address_option
def nodes(json_: bool, address: str | None) -> None:
    """See `_NODES`."""
    with cluster(address):
        found = list_nodes()
        if json_:
            show.as_json(found)
        else:
            show.table(["NODE", "ADDRESS", "CPUS", "GPUS", "MEMORY", "PROCS", "SESSIONS", "LABELS"], map(_row, found))


def _row(node: NodeSummary) -> list[str]:
    memory = f"{show.size(node.memory_free)} of {show.size(node.memory)}" if node.memory else ""
    return [
        node.node_id[:16],
        node.ip,
        _of(node.cpus_free, node.cpus),
        _of(node.gpus_free, node.gpus),
        memory,
        str(sum(node.procs.values()) or ""),
        str(len(node.procs) or ""),
        " ".join(f"{name}={value}" for name, value in node.labels.items() if name != "ray.io/node-id"),
    ]


def _of(free: float, total: float) -> str:
    return f"{free:g} of {total:g}" if total else ""
