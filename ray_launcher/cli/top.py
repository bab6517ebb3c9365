"""`ray-launcher top`: what procs use, live on a terminal, once in a pipe."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import click

from ray_launcher import ProcLauncherError, ProcUsage, RayProcLauncher, list_sessions
from ray_launcher.cli import show
from ray_launcher.cli.sessions import chosen, cluster, open_sessions, session_options, verb

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_TOP = """Show what procs use: CPU, memory and processes of their whole trees, the busiest first. TARGET is the id of a
proc, or the name of a gang or run; all without one. On a terminal the table is kept up to date until q or Ctrl-C; in a
pipe, or with --once, it is printed once.

CPU is in percent of one CPU, since the look before. MEMORY is the resident set (RSS) of each process added up: what
several share counts for each. GPU MEMORY is shown where NVML tells of any.

\b
Examples:
  ray-launcher top
  ray-launcher top train --interval 5
  ray-launcher top --json | jq '.[] | select(.memory > 1e9).proc_id'
"""

#: Lines of a terminal that are not rows of procs.
_AROUND = 5
_QUIT = b"qQ"
_HEADINGS = ["PROC", "STATE", "AGE", "NODE", "CPU %", "MEMORY", "PROCESSES"]


class _Row(NamedTuple):
    """One proc of a session: percent of a CPU, and what else it uses."""

    session: str
    cpu: float | None
    usage: ProcUsage


@verb("top", "Show what procs use, live.", _TOP)
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="From one look to the next.",
)
@click.option("--once", is_flag=True, help="Print the table once: two looks, the interval apart.")
@click.option("--json", "json_", is_flag=True, help="The same, all that is known, as a JSON array.")
@session_options
def top(  # one argument per option
    *, targets: Sequence[str], interval: float, once: bool, json_: bool, session: str | None, address: str | None
) -> None:
    """See `_TOP`."""
    with cluster(address):
        looks = _Looks(session, targets)
        if json_ or once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            looks.take()
            time.sleep(interval)
            rows = looks.take()
            if json_:
                show.as_json([_facts(row) for row in rows])
            else:
                show.table(*_cells(rows))
        else:
            _live(looks, interval)


class _Looks:
    """One after the other at the procs that targets name in a session, or in all that there are."""

    def __init__(self, session: str | None, targets: Sequence[str]) -> None:
        self._session = session
        self._wanted = {(each.session, info.proc_id) for each, info in chosen(session, targets)} if targets else None
        self._launchers = {launcher.session: launcher for launcher in open_sessions(session)}
        self._before: Mapping[tuple[str, str], ProcUsage] = {}

    def take(self) -> list[_Row]:
        """The busiest first. Raises `ProcLauncherError`."""
        found = {(session, usage.info.proc_id): usage for session, usage in self._used()}
        if self._wanted is not None:
            found = {key: usage for key, usage in found.items() if key in self._wanted}
        rows = [_Row(key[0], usage.cpu_percent(self._before.get(key)), usage) for key, usage in found.items()]
        self._before = found
        return sorted(rows, key=lambda row: (-(row.cpu or 0.0), -(row.usage.memory or 0), row.usage.info.proc_id))

    def _used(self) -> Iterator[tuple[str, ProcUsage]]:
        names = [self._session] if self._session else [summary.name for summary in list_sessions()]
        for name in names:
            try:
                if name not in self._launchers:
                    self._launchers[name] = RayProcLauncher.find(name)
                used = self._launchers[name].usage()
            except ProcLauncherError:
                self._launchers.pop(name, None)
                if name == self._session:
                    raise
                continue  # one of several, which has just ended
            yield from ((name, usage) for usage in used)


def _facts(row: _Row) -> dict[str, object]:
    usage = row.usage
    return {
        "session": row.session,
        "proc_id": usage.info.proc_id,
        "state": usage.info.state,
        "node_id": usage.info.node_id,
        "node_ip": usage.info.node_ip,
        "pid": usage.info.pid,
        "started_at": usage.info.started_at,
        "cpu_percent": row.cpu,
        "cpu_seconds": usage.cpu_seconds,
        "memory": usage.memory,
        "gpu_memory": usage.gpu_memory,
        "processes": usage.processes,
    }


def _cells(rows: Sequence[_Row]) -> tuple[list[str], list[list[str]]]:
    """Headings, and the cells below them."""
    several = len({row.session for row in rows}) > 1
    gpus = any(row.usage.gpu_memory for row in rows)
    headings = [*(["SESSION"] if several else []), *_HEADINGS, *(["GPU MEMORY"] if gpus else [])]
    cells = []
    for row in rows:
        usage = row.usage
        info = usage.info
        cells.append(
            [
                *([row.session] if several else []),
                info.proc_id,
                info.state,
                show.ago(info.started_at).removesuffix(" ago"),
                info.node_ip or "",
                "" if row.cpu is None else f"{row.cpu:.1f}",
                "" if usage.memory is None else show.size(usage.memory),
                "" if usage.processes is None else str(usage.processes),
                *([show.size(usage.gpu_memory or 0)] if gpus else []),
            ]
        )
    return headings, cells


# -- on a terminal ----------------------------------------------------------------------------------------------------


def _live(looks: _Looks, interval: float) -> None:
    """Until q or Ctrl-C; the terminal is then as it was."""
    from rich.console import Console  # noqa: PLC0415  # a tenth of a second: not for those who ask for JSON
    from rich.live import Live  # noqa: PLC0415

    console = Console()
    taken: queue.SimpleQueue[list[_Row] | BaseException] = queue.SimpleQueue()
    fresh, tell = os.pipe()
    threading.Thread(target=_look_for_ever, args=(looks, interval, taken, tell), daemon=True).start()
    live = Live("", console=console, screen=True, auto_refresh=False)
    with contextlib.suppress(KeyboardInterrupt), _keys() as keyboard, live:
        while not _quits(keyboard, fresh):
            rows = taken.get()
            if isinstance(rows, BaseException):
                raise rows
            live.update(_page(console, rows, interval), refresh=True)


def _look_for_ever(
    looks: _Looks, interval: float, taken: queue.SimpleQueue[list[_Row] | BaseException], tell: int
) -> None:
    """In a thread: a look may take seconds, and a key is not to wait for it."""
    while True:
        began = time.monotonic()
        try:
            taken.put(looks.take())
        except Exception as error:  # noqa: BLE001  # whatever it is, it is told to whoever looks at the screen
            taken.put(error)
            os.write(tell, b".")
            return
        os.write(tell, b".")
        time.sleep(max(0.0, began + interval - time.monotonic()))


@contextmanager
def _keys() -> Iterator[int]:
    """The terminal's keys come one by one and are not shown."""
    keyboard = sys.stdin.fileno()
    saved = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, saved)


def _quits(keyboard: int, fresh: int) -> bool:
    """Return when there is a fresh look, False, or when it is enough: a key says so, or the terminal has gone."""
    while True:
        ready, _, _ = select.select([keyboard, fresh], [], [])
        if keyboard in ready:
            keys = os.read(keyboard, 64)
            if not keys or set(keys) & set(_QUIT):
                return True
        if fresh in ready:
            os.read(fresh, 1)
            return False


def _page(console: Console, rows: Sequence[_Row], interval: float) -> RenderableType:
    """As many rows as there is room for."""
    from rich.console import Group  # noqa: PLC0415  # as above

    room = max(1, console.size.height - _AROUND)
    return Group(
        f"{len(rows)} proc{'' if len(rows) == 1 else 's'}, every {interval:g} s; q quits",
        show.rich_table(*_cells(rows[:room])),
        f"and {len(rows) - room} more" if len(rows) > room else "",
    )
