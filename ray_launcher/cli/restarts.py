"""Options of the command line for what is started again when it fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ray_launcher.cli.limits import duration
from ray_launcher.cli.options import together

_LONGEST = 300.0


def _delay(value: str) -> float:
    seconds = 0.0 if value == "0" else duration(value)
    if seconds > _LONGEST:
        raise click.BadParameter(f"{value!r} is too long; write 0 to {_LONGEST:g} seconds")
    return seconds


#: Add the options to a command, which gets them as keywords for `restart_fields`.
restart_options = together(
    click.option(
        "--max-restarts",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Start a proc that fails again, up to N times; a gang as a whole. RAY_LAUNCHER_RESTART_COUNT tells PROGRAM"
        " which start it is.  [default: 0]",
    ),
    click.option(
        "--restart-delay",
        type=_delay,
        default="10",
        metavar="TIME",
        help="Wait so long before the first restart, and twice as long each time, up to 5m.  [default: 10]",
    ),
)


def restart_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the launch options, and arguments of `launch_gang`."""
    return {"max_restarts": options["max_restarts"], "restart_delay": options["restart_delay"]}
