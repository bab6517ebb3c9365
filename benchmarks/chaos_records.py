"""What the chaos run writes down: launches and what their ports said, blows, and the stamps of the programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from chaos_lives import Life

from ray_launcher import ProcExitResult

#: The layers that can be struck. `guard`: both guard and supervisor, so that only the agent is left to tidy up.
LAYERS = ("proc", "supervisor", "guard", "agent", "spawner", "raylet")


@dataclasses.dataclass(frozen=True)
class Request:
    """`terminate` with `timeout`, or `kill` (None), sent at `when`. All times are of the monotonic clock."""

    when: float
    timeout: float | None


@dataclasses.dataclass
class Launch:
    """One launch as its launcher saw it.

    name: its stamps' file; its own, while several launches may have one proc_id after the other.
    node: the name of the node that it asked for.  rival: another launch had its id when it was sent.
    results: what the port's callback was told, and when.  second_look: what the port said when asked again.
    survivors: processes of it that were alive when its port resolved, and should not have been.
    """

    name: str
    proc_id: str
    life: Life
    launched: float
    node: str | None = None
    rival: bool = False
    results: list[tuple[float, ProcExitResult]] = dataclasses.field(default_factory=list)
    requests: list[Request] = dataclasses.field(default_factory=list)
    survivors: list[str] = dataclasses.field(default_factory=list)
    second_look: ProcExitResult | None = None
    hung: bool = False

    @property
    def told(self) -> float:
        """When its port resolved; inf for one that has not."""
        return self.results[0][0] if self.results else float("inf")


@dataclasses.dataclass(frozen=True)
class Blow:
    """Something of `layer` was killed.

    node: its name; None for the spawner.  name: of the launch, where a proc was struck.
    """

    when: float
    layer: str
    pid: int
    node: str | None = None
    name: str | None = None


@dataclasses.dataclass(frozen=True)
class Stamp:
    """One line that a program wrote: see `chaos_life`."""

    word: str
    when: float
    pid: int
    more: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Start:
    """What a start stamp tells."""

    when: float
    pid: int
    ticks: int
    supervisor: int
    node: str


class Stamps:
    """All lines of one launch."""

    def __init__(self, lines: list[str]) -> None:
        self.all = [_parsed(line) for line in lines]
        self.starts = [
            Start(stamp.when, stamp.pid, int(stamp.more[0]), int(stamp.more[1]), stamp.more[2])
            for stamp in self.all
            if stamp.word == "start"
        ]
        self.escaped = [(stamp.pid, int(stamp.more[0])) for stamp in self.all if stamp.word == "escaped"]

    @classmethod
    def read(cls, path: Path) -> Stamps:
        """None at all where the program never ran."""
        try:
            return cls(path.read_text().splitlines())
        except FileNotFoundError:
            return cls([])

    @property
    def start(self) -> Start | None:
        """The only start, or the first of too many."""
        return self.starts[0] if self.starts else None

    def ends(self, *words: str) -> dict[int, float]:
        """{code or signal: when} of the end stamps with these words."""
        return {int(stamp.more[0]): stamp.when for stamp in self.all if stamp.word in words}


def _parsed(line: str) -> Stamp:
    word, when, pid, *more = line.split()
    return Stamp(word, float(when), int(pid), tuple(more))
