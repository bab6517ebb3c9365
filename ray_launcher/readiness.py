"""When a proc counts as ready: `ReadyWhen`. Standard library only; knows nothing of Ray."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_launcher import checks

if TYPE_CHECKING:
    import os

_PORTS = 65535


@dataclass(frozen=True, kw_only=True)
class ReadyWhen:
    """How to tell, on its node, that a proc that runs is ready to be used. Exactly one of these is given.

    Raises TypeError or ValueError, naming the argument.
    """

    port: int | None = None
    """1 to 65535: somebody listens at this TCP port, on the node's loopback or Ray's address of it."""
    log: str | None = None
    """A regular expression of `re`: a line of the proc's stdout or stderr matches it anywhere."""
    exec: Sequence[str] = ()
    """Program and arguments: exits with code 0. It runs in the proc's environment and working directory, once a second
    as long as it does not; it is killed after 10 seconds. Stored as a tuple of str."""

    if TYPE_CHECKING:
        # What may be passed is wider than what is stored.
        def __init__(
            self,
            *,
            port: int | None = None,
            log: str | None = None,
            exec: Iterable[str | os.PathLike[str]] = (),  # noqa: A002  # the field's name
        ) -> None: ...

    def __post_init__(self) -> None:
        checks.store(self, "exec", checks.many(checks.path, "ReadyWhen.exec", self.exec))
        checks.store(self, "port", checks.optional(_port, "ReadyWhen.port", self.port))
        checks.store(self, "log", checks.optional(_pattern, "ReadyWhen.log", self.log))
        given = [each for each in (self.port, self.log, self.exec or None) if each is not None]
        if len(given) != 1:
            raise ValueError(f"ReadyWhen needs one of port, log and exec, not {len(given)} of them")


def _port(where: str, value: object) -> int:
    port = checks.count(where, value)
    if not 1 <= port <= _PORTS:
        raise ValueError(f"{where} must be 1 to {_PORTS}, not {port}")
    return port


def _pattern(where: str, value: object) -> str:
    pattern = checks.not_empty(checks.utf8_text, where, value)
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{where} is no regular expression: {error}") from None
    return pattern
