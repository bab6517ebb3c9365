"""How far a run is: on a terminal a live line, elsewhere a plain one whenever what it waits for changes."""

from __future__ import annotations

from ray_launcher.cli.output import Screen


class Progress:
    """Counts, and shows on `screen`."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._total = self._started = self._ended = self._failed = 0
        self._reason = self._said = ""
        self.stale = False  # the live line is not up to date

    def begin(self, total: int) -> None:
        """So many procs are launched now."""
        self._total = total
        self.stale = self._screen.live_lines

    def started(self, count: int, reason: str) -> None:
        """So many have started, and others wait for this reason, if it is not empty."""
        self._started, self._reason = count, reason
        self.stale = self._screen.live_lines
        if reason and reason != self._said and not self._screen.live_lines:
            self._said = reason
            self._screen.say(f"waiting: {reason}")

    def ended(self, *, ok: bool) -> None:
        """One has ended."""
        self._ended += 1
        self._failed += not ok
        self.stale = self._screen.live_lines

    def show(self) -> None:
        """Bring the live line up to date."""
        self.stale = False
        self._screen.live(self._line())

    def finish(self) -> None:
        """Remove it for good."""
        self.stale = False
        self._screen.live("")

    def _line(self) -> str:
        if self._reason:
            return f"ray-launcher: waiting: {self._reason}"
        if self._total < 2:
            return ""
        started = max(self._started, self._ended)
        failed = f" ({self._failed} failed)" if self._failed else ""
        return f"ray-launcher: {started - self._ended} of {self._total} run, {self._ended} ended{failed}"
