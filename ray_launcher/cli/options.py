"""Options that several verbs share: a decorator for all of a subject, and values of more than one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def together(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """Adds all of these to a command, in this order."""

    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def variable(value: str) -> tuple[str, str]:
    """NAME=VALUE, or NAME for the value that it has here, which keeps a secret out of command lines."""
    name, equals, text = value.partition("=")
    if not name:
        raise click.BadParameter("the name is missing; write NAME=VALUE")
    if not equals and name not in os.environ:
        raise click.BadParameter(f"{name} is not set here; write {name}=VALUE")
    return name, text if equals else os.environ[name]
