"""Options of the verbs that look at sessions, the sessions that they mean, and the procs that are named."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from ray_launcher import ProcInfo, ProcLauncherError, RayProcLauncher, list_sessions
from ray_launcher.cli.connect import ConnectError, connect, leave
from ray_launcher.cli.options import together

#: Names the session that is meant where --session does not.
VARIABLE = "RAY_LAUNCHER_SESSION"
#: The session of `run -d` where nothing names one.
DEFAULT = "default"

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: An id, or the name of a gang or run, perhaps with ranks behind it.
_RANKS = re.compile(r"(.+)/(\d+)-(\d+)")


def session_name(value: str) -> str:
    """A parameter's value. Raises `click.BadParameter`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise click.BadParameter(f"{value!r} is not a name; use letters, digits, '.', '_' and '-', at most 64")
    return value


#: Add --address to a verb, which gets it as `address`.
address_option = click.option(
    "--address", metavar="ADDRESS", help="Cluster: HOST:PORT, or auto.  [default: RAY_ADDRESS, else auto]"
)
#: Add --session and --address to a verb, which gets them as `session` and `address`.
session_options = together(
    click.option(
        "-S",
        "--session",
        type=session_name,
        envvar=VARIABLE,
        metavar="NAME",
        help=f"Session that is meant.  [default: {VARIABLE}, else all that there are]",
    ),
    address_option,
)


def verb(name: str, summary: str, help_text: str, **settings: Any) -> Callable[[_Command], click.Command]:
    """A verb of the command line; its help ends with examples."""
    return click.command(
        name,
        help=help_text,
        short_help=summary,
        context_settings={"max_content_width": 120, **settings.pop("context_settings", {})},
        **settings,
    )


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connected to a cluster that runs; what goes wrong there is told in one line. Ends the process with code 0."""
    try:
        connect(address, start=False)
        yield
    except (ConnectError, ProcLauncherError) as error:
        raise click.ClickException(str(error)) from error
    leave(0)


def open_sessions(session: str | None) -> list[RayProcLauncher]:
    """The session of that name, or all. Raises `click.ClickException` where there is none of that name."""
    there = [summary.name for summary in list_sessions()]
    if session is None:
        return [RayProcLauncher.find(name) for name in there]
    if session not in there:
        raise click.ClickException(f"no session {session!r}{_instead(session, there, 'sessions')}")
    return [RayProcLauncher.find(session)]


def chosen(session: str | None, targets: Sequence[str]) -> list[tuple[RayProcLauncher, ProcInfo]]:
    """The procs that targets name, in the order of the targets and, below that, of ranks.

    A target is the id of a proc, the name of a gang or run, which means all its ranks, or that with some of them, as
    in train/0-3. Raises `click.ClickException` for one that names nothing, or the same in several sessions.
    """
    known = [(launcher, info) for launcher in open_sessions(session) for info in launcher.procs()]
    return [each for target in targets for each in _matching(known, target)]


def chosen_one(session: str | None, target: str) -> tuple[RayProcLauncher, ProcInfo]:
    """The proc that a target names, which must be one. Raises `click.ClickException`."""
    found = chosen(session, [target])
    if len(found) > 1:
        ids = ", ".join(info.proc_id for _, info in found[:3])
        raise click.ClickException(f"{target!r} means {len(found)} procs: name one of {ids} ...")
    return found[0]


def _matching(known: Sequence[tuple[RayProcLauncher, ProcInfo]], target: str) -> list[tuple[RayProcLauncher, ProcInfo]]:
    exact = [each for each in known if each[1].proc_id == target]
    found = exact or sorted(
        (each for each in known if _is_rank(each[1].proc_id, target)), key=lambda each: _rank(each[1].proc_id)
    )
    names = sorted({launcher.session for launcher, _ in found})
    if len(names) > 1:
        raise click.ClickException(f"{target!r} is in the sessions {', '.join(names)}: name one with --session")
    if not found:
        ids = sorted({name for _, info in known for name in (info.proc_id, info.proc_id.rpartition("/")[0]) if name})
        raise click.ClickException(f"no proc, gang or run {target!r}{_instead(target, ids, 'procs')}")
    return found


def _is_rank(proc_id: str, target: str) -> bool:
    name, _, rank = proc_id.rpartition("/")
    if not rank.isdecimal():
        return False
    ranks = _RANKS.fullmatch(target)
    return name == target or (ranks is not None and name == ranks[1] and int(ranks[2]) <= int(rank) <= int(ranks[3]))


def _rank(proc_id: str) -> int:
    return int(proc_id.rpartition("/")[2])


def _instead(wanted: str, known: Sequence[str], what: str) -> str:
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    if near:
        return f": did you mean {' or '.join(map(repr, near))}?"
    return (
        f": see `ray-launcher {'sessions' if what == 'sessions' else 'ps -a'}`" if known else f": there are no {what}"
    )


def default_session() -> str:
    """Where `run -d` puts procs when nothing else is asked for."""
    return os.environ.get(VARIABLE) or DEFAULT
