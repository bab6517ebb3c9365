"""Options of the command line for what is started again when it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from ray_launcher.cli.limits import duration

_LONGEST = 300.0
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _delay(value: str) -> float:
    seconds = 0.0 if value == "0" else duration(value)
    if seconds > _LONGEST:
        raise click.BadParameter(f"{value!r} is too long; write 0 to {_LONGEST:g} seconds")
    return seconds


_OPTIONS = (
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


def restart_options(command: _Command) -> _Command:
    """Add the options to a command, which gets them as keywords for `restart_fields`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def restart_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the launch options, and arguments of `launch_gang`."""
    return {"max_restarts": options["max_restarts"], "restart_delay": options["restart_delay"]}
