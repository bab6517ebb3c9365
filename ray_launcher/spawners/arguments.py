"""The arguments of `ContainerSpawner`, which from a command line come as texts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from pathlib import Path


def name(argument: str, value: object) -> str:
    """Not empty. Raises ValueError."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{argument} must be a name or a path, not {value!r}")
    return value


def words(argument: str, value: str | Iterable[str]) -> tuple[str, ...]:
    """Words of a command line, given as such, or as one text with a shell's quotes. Raises TypeError, ValueError."""
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            raise ValueError(f"{argument}: {error}; check the quotes in {value!r}") from None
    found = tuple(value)
    for word in found:
        if not isinstance(word, str):
            raise TypeError(f"{argument} must be a str or several, not {type(word).__name__}")
    return found


def gpus(value: str | None, engine: str) -> str:
    """How they are handed over; None: as this engine does by default. Raises ValueError."""
    if value not in (None, "cdi", "engine"):
        raise ValueError(f"gpus must be 'cdi', 'engine' or None, not {value!r}")
    return value or ("engine" if Path(engine).name.startswith("docker") else "cdi")


def flag(argument: str, value: bool | str) -> bool:
    """Raises ValueError."""
    known = {"true": True, "false": False}
    found = known.get(str(value).lower())
    if found is None:
        raise ValueError(f"{argument} must be true or false, not {value!r}")
    return found


def seconds(argument: str, value: float | str) -> float:
    """More than none. Raises ValueError."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not found > 0:
        raise ValueError(f"{argument} must be a number of seconds above 0, not {value!r}")
    return found
