"""Spawners by name: those that installed packages offer under the entry-point group `ray_launcher.spawners`."""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points

from ray_launcher.errors import ProcLauncherError, UnknownSpawnerError, describe_exception
from ray_launcher.spawner import ProcSpawner

#: A package names its spawners there, in pyproject.toml: `[project.entry-points."ray_launcher.spawners"]`, and
#: `NAME = "MODULE:CLASS"` for each.
GROUP = "ray_launcher.spawners"


def spawner_names() -> list[str]:
    """The names that `find_spawner` knows, sorted. Nothing is imported for that."""
    return sorted(_offered())


def find_spawner(name: str) -> type[ProcSpawner]:
    """The class of that name, for `start_spawner`.

    Raises `UnknownSpawnerError`, which lists the names that there are; `ProcLauncherError` where several distributions
    offer that name, or what is behind it cannot be imported or is no `ProcSpawner` that can be started; TypeError.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    offered = _offered()
    if name not in offered:
        known = ", ".join(sorted(offered)) or "none: no installed package offers any"
        raise UnknownSpawnerError(f"no spawner {name!r}; those that are installed: {known}")
    found, *others = offered[name]
    if others:
        listed = " and ".join(map(_described, offered[name]))
        raise ProcLauncherError(
            f"spawner {name!r} is offered twice: {listed}; uninstall one, or import the class itself"
        )
    where = f"spawner {name!r} ({_described(found)})"
    try:
        spawner_cls = found.load()
    except (Exception, SystemExit) as error:  # a module may be a script that looks for its arguments
        raise ProcLauncherError(f"{where} cannot be imported: {describe_exception(error)}") from error
    if not (isinstance(spawner_cls, type) and issubclass(spawner_cls, ProcSpawner)):
        raise ProcLauncherError(f"{where} is no subclass of ray_launcher.ProcSpawner")
    if inspect.isabstract(spawner_cls):
        missing = ", ".join(sorted(spawner_cls.__abstractmethods__))
        raise ProcLauncherError(f"{where} is not finished: it must define {missing}")
    return spawner_cls


def _offered() -> dict[str, list[EntryPoint]]:
    offered: dict[str, list[EntryPoint]] = {}
    for each in entry_points(group=GROUP):
        offered.setdefault(each.name, []).append(each)
    return offered


def _described(found: EntryPoint) -> str:
    return found.value if found.dist is None else f"{found.value}, of {found.dist.name}"
