"""A shell in a real terminal, by way of tmux."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from cli_rig import DEADLINE
from node_rig import until


class Terminal:
    """A shell in a terminal of its own."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self.address = env["RAY_ADDRESS"].rpartition(":")[0]
        self._tmux = ["tmux", "-S", str(directory / "tmux"), "-f", "/dev/null"]
        shell = ["new-session", "-d", "-x", "200", "-y", "50", "-c", str(directory), "sh"]
        subprocess.run([*self._tmux, *shell], env={**env, "TERM": "xterm", "PS1": ""}, check=True)
        # Neither a prompt nor what is typed: only what is written shows.
        self.keys("PS1=; stty -echo; clear; echo shell", "Enter")
        until(lambda: self.lines() == ["shell"], "a shell", DEADLINE)

    def keys(self, *keys: str) -> None:
        subprocess.run([*self._tmux, "send-keys", *keys], check=True)

    def lines(self) -> list[str]:
        shown = subprocess.run([*self._tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True)
        return [line.strip() for line in shown.stdout.splitlines() if line]

    def sees(self, line: str) -> None:
        def seen() -> bool:
            lines = self.lines()
            assert line in lines or not any(each.startswith("code=") for each in lines), lines
            return line in lines

        until(seen, f"{line!r} on the screen", DEADLINE)

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=True)
