"""Options of the command line for what each proc holds and where it runs, and the placement that they are."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

import click

from ray_launcher import Placement
from ray_launcher.cli.limits import duration, once, size
from ray_launcher.cli.options import together


def _quantity(value: str) -> float:
    if not re.fullmatch(r"[0-9]+\.?[0-9]*|\.[0-9]+", value):
        raise click.BadParameter(f"{value!r} is not a quantity; write a number, as 2 or 0.5")
    return int(value) if value.isdecimal() else float(value)


def _resource(value: str) -> tuple[str, float]:
    name, equals, quantity = value.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{value!r} is no resource; write NAME=QTY, as in license=1")
    return name, _quantity(quantity)


def _label(value: str) -> tuple[str, str]:
    name, equals, wanted = value.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{value!r} is no label; write NAME=VALUE, as in zone=a, zone=!a, or 'zone=in(a,b)'")
    return name, wanted


def _node(value: str) -> str:
    if not re.fullmatch("[0-9a-f]+", value) and not is_address(value):
        raise click.BadParameter(f"{value!r} is neither the hex id of a node nor its IP address; see `ray list nodes`")
    return value


def is_address(node: str) -> bool:
    """Whether this is an IP address rather than a node's id."""
    try:
        ipaddress.ip_address(node)
    except ValueError:
        return False
    return True


#: Add the options to a command, which gets them as keywords for `placement`.
resource_options = together(
    click.option("--cpus", type=_quantity, default="0", metavar="QTY", help="CPUs that each proc holds; shares too."),
    click.option(
        "--gpus", type=_quantity, default="0", metavar="QTY", help="GPUs: a share below 1, or a whole number."
    ),
    click.option(
        "--memory",
        type=size,
        default="0",
        metavar="SIZE",
        help="Memory that each proc holds, as Ray counts it: bytes, or as in 500M (1000s), 16Gi (1024s).",
    ),
    click.option(
        "--resources", type=_resource, multiple=True, metavar="NAME=QTY", help="Custom resources. Repeatable."
    ),
    click.option(
        "--label",
        type=_label,
        multiple=True,
        metavar="NAME=VALUE",
        help="Run on nodes with this label; VALUE may be an expression of Ray's, as in '!a' or 'in(a,b)'. Repeatable.",
    ),
    click.option("--node", type=_node, metavar="NODE", help="Run on this node: its hex id, or its IP address."),
    click.option(
        "--gpu-mask",
        type=click.Choice(["proc", "node", "inherit"]),
        help="GPUs that a proc sees: its own, all of its gang on its node, or what the node has.  [default: proc; node"
        " in a gang]",
    ),
    click.option(
        "--start-timeout",
        type=duration,
        metavar="TIME",
        help="Give up when resources, or nodes with the labels, are not there after so long: seconds, or as in 30m."
        "  [default: wait]",
    ),
)


def placement(options: Mapping[str, Any]) -> Placement:
    """What they ask for; `node_id` may be an address. Raises `click.BadParameter`, TypeError and ValueError."""
    return Placement(
        num_cpus=options["cpus"],
        num_gpus=options["gpus"],
        memory=options["memory"],
        resources=once("--resources", options["resources"]),
        label_selector=once("--label", options["label"]),
        node_id=options["node"],
        timeout=options["start_timeout"],
        gpu_mask=options["gpu_mask"],
    )
