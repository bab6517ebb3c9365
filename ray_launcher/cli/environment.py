"""Options of the command line for the environment of programs: variables, and Ray's runtime_env."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ray_launcher.cli.options import together, variable


def _variables(path: str) -> list[tuple[str, str]]:
    """Of a file as docker and Flux know it: one of the above a line; empty ones and those with # are left out."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise click.BadParameter(f"cannot read {path}: {reason}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                found.append(variable(line.lstrip()))
            except click.BadParameter as error:
                raise click.BadParameter(f"{path}, line {number}: {error.message}") from None
    return found


def _text(value: str) -> str:
    if not value:
        raise click.BadParameter("it is empty")
    return value


def _secret(value: str) -> tuple[str, bytes]:
    name, equals, path = value.partition("=")
    if not name or not equals:
        raise click.BadParameter("write NAME=FILE")  # what was written may be the secret itself
    try:
        return name, Path(path).read_bytes()
    except OSError as error:
        raise click.BadParameter(f"cannot read the file of {name}: {error.strerror}") from None


def _runtime_env(value: str) -> dict[str, Any]:
    """The path of a YAML file, or JSON."""
    import yaml  # noqa: PLC0415  # Ray needs it, too; JSON is YAML

    try:
        text = value if value.lstrip().startswith("{") else Path(value).read_text()
        found = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no YAML"
        raise click.BadParameter(f"cannot read {value}: {reason}") from None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{value} holds no mapping; see Ray's documentation of runtime_env")
    return found


#: Add the options to a command, which gets them as keywords for `variables` and `runtime_env`.
environment_options = together(
    click.option(
        "-e",
        "--env",
        type=variable,
        multiple=True,
        metavar="NAME[=VALUE]",
        help="Set a variable for PROGRAM, over those of the node; without a value, to the one it has here. Repeatable.",
    ),
    click.option(
        "--env-file",
        type=_variables,
        multiple=True,
        metavar="FILE",
        help="Set those of a file with a line NAME=VALUE or NAME for each; --env wins. Repeatable.",
    ),
    click.option(
        "--env-remove",
        type=_text,
        multiple=True,
        metavar="GLOB",
        help="Take the node's variables of this name away, as in 'SLURM_*'. Repeatable.",
    ),
    click.option(
        "--secret",
        type=_secret,
        multiple=True,
        metavar="NAME=FILE",
        help="Give PROGRAM the content of a file here as NAME in $RAY_LAUNCHER_SECRETS, for it alone. Repeatable.",
    ),
    click.option(
        "--runtime-env",
        type=_runtime_env,
        metavar="FILE",
        help="Ray's runtime_env for the session, a YAML file or JSON: PROGRAM runs in it.",
    ),
    click.option(
        "--working-dir",
        type=_text,
        metavar="DIR",
        help="Have Ray copy this directory to the nodes, and run PROGRAM there; or the URI of an archive.",
    ),
)


def variables(options: Mapping[str, Any]) -> dict[str, str]:
    """Those that are to be set."""
    files: Sequence[Sequence[tuple[str, str]]] = options["env_file"]
    return dict([*(each for file in files for each in file), *options["env"]])


def runtime_env(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The session's; None where nothing is asked for."""
    asked: dict[str, Any] = dict(options["runtime_env"] or {})
    if options["working_dir"] is not None:
        asked["working_dir"] = options["working_dir"]
    return asked or None
