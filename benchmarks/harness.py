"""Runs competing cases in turn, several rounds, and reports medians and ratios within one run, as a table and as JSON.

Machines are shared and noisy: a figure of one run says little, a ratio against a case measured beside it says more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

Case = Callable[[], float]


def arguments(description: str, **defaults: int) -> argparse.Namespace:
    """The options every benchmark has: --rounds, --json FILE, and one integer for each of `defaults`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=5, help="how often each case is measured (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help="default %(default)s")
    return parser.parse_args()


def start_ray() -> None:
    """A local Ray of our own, quiet; with more CPUs than the machine has it would start as many idle workers."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def measure(cases: dict[str, Case], rounds: int) -> dict[str, list[float]]:
    """Each case once per round, the order turning with the rounds, so that drift and caches favour nobody."""
    names = list(cases)
    figures: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turned = names[number % len(names) :] + names[: number % len(names)]
        for name in turned:
            figures[name].append(cases[name]())
    return figures


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(
    title: str,
    unit: str,
    figures: dict[str, list[float]],
    ratios: dict[str, tuple[str, str]],
    json_path: Path | None = None,
    notes: dict[str, Any] | None = None,
) -> None:
    """Print and write. `ratios` is {label: (case, case it is divided by)}, taken round by round."""
    table = Table(title=f"{title} ({unit})")
    for column in ("case", "median", "min", "max"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for name, values in figures.items():
        table.add_row(name, *(f"{value:.4g}" for value in (statistics.median(values), min(values), max(values))))
    table.add_section()
    pairs = {
        label: [one / other for one, other in zip(figures[case], figures[base], strict=False)]
        for label, (case, base) in ratios.items()
    }
    for label, values in pairs.items():
        table.add_row(label, *(f"{value:.3g} x" for value in (statistics.median(values), min(values), max(values))))
    console = Console(width=110)
    console.print(table)
    for name, value in (notes or {}).items():
        console.print(f"{name}: {value}")
    console.print(f"{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])} on {machine()}", style="dim")
    if json_path is not None:
        content = {"title": title, "unit": unit, "figures": figures, "ratios": pairs, "notes": notes or {}}
        content |= {"command": [Path(sys.argv[0]).name, *sys.argv[1:]], "machine": machine()}
        json_path.write_text(json.dumps(content, indent=1) + "\n")


def machine() -> str:
    """What the figures were measured on."""
    return (
        f"{os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}, Ray {ray.__version__}"
    )
