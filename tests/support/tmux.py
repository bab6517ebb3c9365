"""A shell in a terminal of its own, whose screen can be read."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from node_rig import until

#: Seconds after which a wait fails.
DEADLINE = 100.0


class Tmux:
    """Neither a prompt nor what is typed shows, only what is written."""

    def __init__(self, directory: Path, env: Mapping[str, str], width: int = 120, height: int = 30) -> None:
        self._tmux = ["tmux", "-S", str(directory / "tmux"), "-f", "/dev/null"]
        shell = ["new-session", "-d", "-x", str(width), "-y", str(height), "-c", str(directory), "sh"]
        subprocess.run([*self._tmux, *shell], env={**env, "TERM": "xterm", "PS1": ""}, check=True)
        self.keys("PS1=; stty -echo; clear; echo shell", "Enter")
        until(lambda: self.lines() == ["shell"], "a shell", DEADLINE)

    def keys(self, *keys: str) -> None:
        subprocess.run([*self._tmux, "send-keys", *keys], check=True)

    def lines(self) -> list[str]:
        """The screen, without its empty lines."""
        shown = subprocess.run([*self._tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True)
        return [line.strip() for line in shown.stdout.splitlines() if line.strip()]

    def sees(self, *texts: str) -> list[str]:
        """The screen, once all of them are on it."""

        def seen() -> list[str]:
            lines = self.lines()
            return lines if all(text in "\n".join(lines) for text in texts) else []

        try:
            return until(seen, f"{texts} on the screen", DEADLINE)
        except AssertionError as error:
            raise AssertionError(f"{error}; the screen: {self.lines()}") from None

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=True)
