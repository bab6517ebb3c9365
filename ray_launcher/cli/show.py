"""How verbs show what they have found: tables for people, JSON for programs; times, sizes and states in words."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from ray_launcher import Exited, Failed, ProcExitResult, ProcInfo, Signaled

if TYPE_CHECKING:
    from rich.table import Table

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
_STATE_COLOURS = {"RUNNING": "green", "PENDING": "yellow", "STARTING": "yellow", "TERMINATING": "magenta"}


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """On a terminal as wide as that, with colour; in a pipe plain, and as wide as need be."""
    rows = [list(row) for row in rows]
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
        for row in (headings, *rows):
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console  # noqa: PLC0415  # a tenth of a second: not for those who ask for JSON

    Console().print(rich_table(headings, rows))


def rich_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """For a terminal."""
    from rich import box  # noqa: PLC0415  # as above
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        shown.add_column(heading, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell, style=_STATE_COLOURS.get(cell, "")) for cell in row))
    return shown


def as_json(value: object) -> None:
    """One value, indented."""
    click.echo(json.dumps(plain(value), indent=2))


def as_json_lines(values: Iterable[object]) -> None:
    """One line for each."""
    for value in values:
        click.echo(json.dumps(plain(value)))


def plain(value: object) -> Any:
    """What JSON can hold: times in ISO 8601, results with what they mean."""
    if isinstance(value, ProcExitResult):
        return result_facts(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def result_facts(result: ProcExitResult) -> dict[str, Any]:
    """Flat: kind, code, signal, core_dumped, reason; in words, and the last lines of stderr."""
    facts: dict[str, Any] = {"kind": "failed", "code": None, "signal": None, "core_dumped": None, "reason": None}
    match result.kind:
        case Exited(code):
            facts |= {"kind": "exited", "code": code}
        case Signaled(signal, core_dumped):
            facts |= {"kind": "signaled", "signal": signal, "core_dumped": core_dumped}
        case Failed(reason):
            facts |= {"reason": reason}
    return {**facts, "text": str(result), "stderr_tail": result.stderr_tail}


def ago(when: datetime | None) -> str:
    """How long ago, in words; "" for never."""
    return "" if when is None else f"{duration((datetime.now(timezone.utc) - when).total_seconds())} ago"


def duration(seconds: float) -> str:
    """The two largest units that it has: 3m 20s, 2d 4h; 0s for less than one."""
    words: list[str] = []
    left = max(0, int(seconds))
    for size, unit in _UNITS:
        if left >= size and len(words) < 2:  # said above
            words.append(f"{left // size}{unit}")
        left %= size
    return " ".join(words) or "0s"


def size(count: float) -> str:
    """Bytes, in units of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # said above
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def outcome(info: ProcInfo) -> str:
    """What there is to say of a proc besides its state: how it ended, or what it waits for."""
    if info.result is not None:
        return str(info.result)
    return info.waits_for or ""
