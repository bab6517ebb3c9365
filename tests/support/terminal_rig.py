"""A shell in a terminal of its own, by way of tmux."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from cli_rig import DEADLINE
from node_rig import until

import ray_launcher


class Terminal:
    """A shell in a terminal of its own."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self.address = env["RAY_ADDRESS"].rpartition(":")[0]
        self._tmux = ["tmux", "-S", str(directory / "tmux"), "-f", "/dev/null"]
        shell = ["new-session", "-d", "-x", "200", "-y", "50", "-c", str(directory), "sh"]
        ours = {"PYTHONPATH": str(Path(ray_launcher.__file__).parent.parent), "TERM": "xterm", "PS1": ""}
        subprocess.run([*self._tmux, *shell], env={**env, **ours}, check=True)
        # Neither a prompt nor what is typed: only what is written shows.
        self.keys("PS1=; stty -echo; clear; echo shell", "Enter")
        until(lambda: self.lines() == ["shell"], "a shell", DEADLINE)

    def keys(self, *keys: str) -> None:
        subprocess.run([*self._tmux, "send-keys", *keys], check=True)

    def resize(self, columns: int, rows: int) -> None:
        subprocess.run([*self._tmux, "resize-window", "-x", str(columns), "-y", str(rows)], check=True)

    def hang_up(self) -> None:
        """Close the window; another one stays, so that `close` finds a server."""
        subprocess.run([*self._tmux, "new-window", "sh"], check=True)
        subprocess.run([*self._tmux, "kill-window", "-t", ":0"], check=True)

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
