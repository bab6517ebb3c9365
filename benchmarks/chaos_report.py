"""What a chaos run tells beside its counts: how much happened, and how fast the session served again."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from chaos_killer import Killer
from chaos_records import LAYERS, Blow, Launch
from chaos_run import Run
from rich.console import Console
from rich.table import Table

from ray_launcher import Failed

#: What differs between failures of one kind.
_NAMES = r"'[^']*'|[0-9a-f]{20,}|[0-9]+([.][0-9]+)+"


def summary(run: Run, killer: Killer, stamps: Path) -> dict[str, Any]:
    """How much happened."""
    struck = Counter(blow.layer for blow in killer.blows)
    results = Counter(_kind(launch) for launch in run.launches)
    seen = {layer: len(found) for layer, found in killer.seen.items()}
    return {
        "launches": len(run.launches),
        "results": dict(results.most_common()),
        "requests": sum(len(launch.requests) for launch in run.launches),
        "kills": {layer: struck[layer] for layer in LAYERS},
        "incarnations_seen": seen,
        "back_to_serving": {layer: _times(back_to_serving(run.launches, killer.blows, layer)) for layer in RECOVERING},
        "longest_call": round(run.longest_call, 3),
        "stamp_files": sum(1 for _ in stamps.iterdir()),
    }


#: Layers whose loss nobody may notice, but for a short wait.
RECOVERING = ("spawner", "agent")


def back_to_serving(launches: list[Launch], blows: list[Blow], layer: str) -> list[float]:
    """For each blow to the layer: seconds until a launch sent after it (to the agent's node) was successful."""
    times = []
    for blow in blows:
        if blow.layer == layer:
            after = (launch for launch in launches if launch.launched >= blow.when and blow.node in (None, launch.node))
            told = [launch.told for launch in after if launch.results and not isinstance(_result(launch), Failed)]
            times += [min(told) - blow.when] if told else []
    return times


def print_table(result: dict[str, Any]) -> None:
    """To stderr: stdout has the JSON."""
    table = Table(title=f"chaos, seed {result['seed']}: {result['launches']} launches")
    table.add_column("must be 0")
    table.add_column("count", justify="right")
    for name, count in result["counts"].items():
        table.add_row(name, str(count), style="bold red" if count else None)
    console = Console(stderr=True, width=110)
    console.print(table)
    for name in ("kills", "results", "back_to_serving", "seconds"):
        console.print(f"{name}: {result[name]}")
    for violation in result["violations"][:20]:
        console.print(f"{violation['kind']} {violation['name']}: {violation['text']}", style="red", markup=False)
    console.print(f"{' '.join(result['command'])} on {result['machine']}", style="dim")


def _times(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {"count": len(seconds), "median": round(statistics.median(seconds), 3), "max": round(max(seconds), 3)}


def _result(launch: Launch) -> object:
    return launch.results[0][1].kind


def _kind(launch: Launch) -> str:
    if not launch.results:
        return "none"
    kind = _result(launch)
    if not isinstance(kind, Failed):
        return type(kind).__name__
    first, _, last = kind.reason.partition("Traceback")
    reason = first + last.splitlines()[-1] if last else first  # what went wrong in a supervisor
    return f"Failed: {re.sub(_NAMES, '…', reason)[: 200 if last else 90]}"
