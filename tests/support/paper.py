"""A screen that notes what is written to it."""

from __future__ import annotations

from ray_launcher.cli.output import Screen


class Paper(Screen):
    """A screen that notes each write."""

    def __init__(self) -> None:
        super().__init__(on_closed=lambda _: None)
        self.writes: list[tuple[int, bytes]] = []

    def write(self, fd: int, data: bytes) -> None:
        self.writes.append((fd, data))
