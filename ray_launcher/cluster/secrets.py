"""Secrets of procs on their node: files for this user alone, in the supervisor's directory, gone with the tree.

Whoever is the last to leave, supervisor, guard or agent, takes what is left along.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


class Secrets:
    """Those of one agent's launches, below `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "secrets"
        self._tokens: set[str] = set()

    def find(self) -> set[str]:
        """The tokens of launches for which an earlier agent has left some."""
        if self._directory.is_dir():
            self._tokens = {path.name for path in self._directory.iterdir()}
        return set(self._tokens)

    def put(self, token: str, secrets: Mapping[str, bytes]) -> str:
        """Write those of a launch; returns their directory. Raises OSError."""
        self._tokens.add(token)
        where = self._directory / token
        for each in (self._directory, where):
            each.mkdir(mode=0o700, exist_ok=True)
        for name, content in secrets.items():
            fd = os.open(where / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(content)
        return str(where)

    def __contains__(self, token: str) -> bool:
        return token in self._tokens

    def remove(self, token: str) -> None:
        """Nothing of that launch is left."""
        self._tokens.discard(token)
        shutil.rmtree(self._directory / token, ignore_errors=True)
