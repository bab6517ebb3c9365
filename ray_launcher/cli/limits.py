"""Options of the command line that bind and limit procs, and the launch options that they are."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import click

from ray_launcher import ProcBind
from ray_launcher.cli.options import together

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_BYTES = {"": 1, **{unit: 1000**power for power, unit in enumerate("KMGT", 1)}}
_BYTES |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGT", 1)}
_BINDINGS = ("cpus", "physcpubind", "cpunodebind", "membind")


def grace_period(value: str) -> float:
    """A parameter's value: seconds, 0 or more, or inf."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:  # NaN too
        raise click.BadParameter(f"{value!r} is not a number of seconds; write 0 or more, or inf to never kill")
    return seconds


#: Adds -t to a verb that ends procs, which gets it as `grace`.
time_option = click.option(
    "-t",
    "--time",
    "grace",
    type=grace_period,
    default="10",
    metavar="SECONDS",
    help="Time between SIGTERM and SIGKILL; inf for no SIGKILL.  [default: 10]",
)


def duration(value: str) -> float:
    """``90``, ``90s``, ``1.5h``: seconds, more than 0."""
    number = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)([smh]?)", value)
    seconds = float(number[1]) * _UNITS[number[2]] if number else 0.0
    if not 0 < seconds < math.inf:
        raise click.BadParameter(f"{value!r} is not a time; write seconds above 0, as 90, or 30m, or 1.5h")
    return seconds


def size(value: str) -> int:
    """``5000``, ``500M``, ``16Gi``, ``1.5GB``: bytes."""
    found = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)([KMGT]i?|)B?", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no size; write bytes, or as in 500M (1000s) or 16Gi (1024s)")
    number, unit = found[1], _BYTES[found[2]]
    return int(number) * unit if number.isdecimal() else int(float(number) * unit)


def _signal_at(value: str) -> tuple[int, float]:
    name, at, lead = value.partition("@")
    if not at:
        raise click.BadParameter(f"{value!r} lacks the time; write SIG@TIME, as in USR1@60")
    return _signum(name), duration(lead)


def _signum(name: str) -> int:
    if name.isdecimal() and name.isascii():
        return int(name)  # the launch options check it
    full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    if full not in signal.Signals.__members__:
        raise click.BadParameter(f"{name!r} is no signal; write a name as USR1 or SIGUSR1, or a number")
    return signal.Signals[full]


def _binding(value: str) -> tuple[str, str]:
    key, equals, listed = value.partition("=")
    if key not in _BINDINGS or not equals:
        raise click.BadParameter(f"{value!r} is no binding; write {', '.join(f'{key}=LIST' for key in _BINDINGS)}")
    return key, listed


def _rlimit(value: str) -> tuple[str, tuple[int | None, int | None]]:
    name, equals, text = value.partition("=")
    soft, _, hard = text.partition(":")
    if not name or not equals:
        raise click.BadParameter(f"{value!r} is no limit; write NAME=VALUE or NAME=SOFT:HARD, as in nofile=65536")
    return name, (_rlimit_number(soft), _rlimit_number(hard or soft))


def _rlimit_number(text: str) -> int | None:
    if text == "unlimited":
        return None
    if not (text.isdecimal() and text.isascii() and len(text) < 20):
        raise click.BadParameter(f"{text!r} is no limit's value; write a whole number, or unlimited")
    return int(text)


def _umask(value: str) -> int:
    if not re.fullmatch("(0o)?[0-7]{1,4}", value):
        raise click.BadParameter(f"{value!r} is no umask; write octal digits, as 027")
    return int(value.removeprefix("0o"), 8)


#: Add the options to a command, which gets them as keywords for `limit_fields`.
limit_options = together(
    click.option(
        "--bind",
        type=_binding,
        multiple=True,
        metavar="KEY=LIST",
        help="Bind to CPUs (cpus, physcpubind, or cpunodebind for those of NUMA nodes) or to the memory of NUMA nodes"
        " (membind). LIST is as in 0-3,8. Repeat it for another KEY.",
    ),
    click.option(
        "--rlimit",
        type=_rlimit,
        multiple=True,
        metavar="NAME=SOFT[:HARD]",
        help="Limit a resource, as in nofile=65536 or core=0:unlimited; names as in `prlimit --help`. Repeatable.",
    ),
    click.option("--umask", type=_umask, metavar="MODE", help="File mode creation mask, octal.  [default: the node's]"),
    click.option("--nice", type=int, metavar="N", help="Niceness, -20 to 19; below 0 takes a privilege.  [default: 0]"),
    click.option(
        "--time-limit",
        type=duration,
        metavar="TIME",
        help="Terminate each proc so long after its start: seconds, or as in 30m, 1.5h. SIGKILL follows after --grace.",
    ),
    click.option(
        "--signal",
        "pre_kill_signal",
        type=_signal_at,
        metavar="SIG@TIME",
        help="Send SIG to PROGRAM's own process so long before the time limit, as in USR1@60.",
    ),
    click.option(
        "--log-limit",
        type=size,
        metavar="SIZE",
        help="Keep so much of what each proc writes to stdout, and the same of stderr: the newest. 64Ki or more."
        "  [default: all]",
    ),
)


def limit_fields(limits: Mapping[str, Any], grace: float) -> dict[str, Any]:
    """Fields of the launch options. Raises `click.BadParameter`, TypeError and ValueError."""
    bindings = once("--bind", limits["bind"])
    if limits["pre_kill_signal"] is not None and limits["time_limit"] is None:
        raise click.BadParameter("it comes before the time limit; give --time-limit too", param_hint="'--signal'")
    return {
        "proc_bind": ProcBind(**bindings) if bindings else None,
        "rlimits": once("--rlimit", limits["rlimit"]),
        "umask": limits["umask"],
        "nice": limits["nice"],
        "time_limit": limits["time_limit"],
        "time_limit_grace": grace,
        "pre_kill_signal": limits["pre_kill_signal"],
        "log_limit": limits["log_limit"],
    }


def once(option: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict. Raises `click.BadParameter`, naming the option, when a name is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise click.BadParameter("the same name is there twice; give it once", param_hint=f"'{option}'")
    return found
