"""A shell in a terminal of its own, whose screen can be read, by way of tmux."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from cli_rig import DEADLINE
from node_rig import until

import ray_launcher


class Terminal:
    """Neither a prompt nor what is typed shows, only what is written."""

    def __init__(self, directory: Path, env: Mapping[str, str], columns: int = 200, rows: int = 50) -> None:
        self._tmux = ["tmux", "-S", str(directory / "tmux"), "-f", "/dev/null"]
        shell = ["new-session", "-d", "-x", str(columns), "-y", str(rows), "-c", str(directory), "sh"]
        ours = {"PYTHONPATH": str(Path(ray_launcher.__file__).parent.parent), "TERM": "xterm", "PS1": ""}
        subprocess.run([*self._tmux, *shell], env={**env, **ours}, check=True)
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
        """The screen, without its empty lines."""
        shown = subprocess.run([*self._tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True)
        return [line.strip() for line in shown.stdout.splitlines() if line.strip()]

    def sees(self, line: str) -> None:
        """It is on the screen, as a whole line; at the latest when there is one `code=...`, which ends a command."""

        def seen() -> bool:
            lines = self.lines()
            assert line in lines or not any(each.startswith("code=") for each in lines), lines
            return line in lines

        until(seen, f"{line!r} on the screen", DEADLINE)

    def shows(self, *texts: str) -> list[str]:
        """The screen, once all of them are somewhere on it."""

        def shown() -> list[str]:
            lines = self.lines()
            return lines if all(text in "\n".join(lines) for text in texts) else []

        try:
            return until(shown, f"{texts} on the screen", DEADLINE)
        except AssertionError as error:
            raise AssertionError(f"{error}; the screen: {self.lines()}") from None

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=True)
