"""Random lives for the procs of the chaos run: how long, how they end, what is asked of them. All from one seed."""

from __future__ import annotations

import dataclasses
import random
import signal
import sys
from pathlib import Path

from ray_launcher import LaunchOptions, Placement

PROGRAM = Path(__file__).with_name("chaos_life.py")
#: Where a launch may ask to go: a slot of the cluster, or wherever its load allows.
SLOTS = ("head", "a", "b")


@dataclasses.dataclass(frozen=True)
class Ask:
    """`terminate` with `timeout` seconds, or `kill` (None), `after` seconds from the launch."""

    after: float
    timeout: float | None


@dataclasses.dataclass(frozen=True)
class Life:
    """One launch, as it is meant to go.

    seconds: until it ends by itself.  end: "exit CODE" or "signal NUMBER".  on_term: "dies", "ignores" or "exit CODE".
    escapes: "no", or a grandchild in a session of its own that "heeds" TERM or "ignores" it.
    lines: to stderr.  slot: where it wants to go; None: anywhere.
    asks: what is asked of it meanwhile.  again: how often its id is launched again as soon as its port has resolved.
    rival: it is launched a second time while it lives, which must fail.  second_look: its result is asked for again.
    """

    seconds: float = 0.0
    end: str = "exit 0"
    on_term: str = "dies"
    escapes: str = "no"
    lines: int = 0
    tail_lines: int = 5
    slot: str | None = None
    asks: tuple[Ask, ...] = ()
    again: int = 0
    rival: bool = False
    second_look: bool = False

    def options(self, directory: Path, name: str, node_id: str | None) -> LaunchOptions:
        """What to launch; its stamps go to DIRECTORY/NAME."""
        words = (directory, name, self.seconds, self.end, self.on_term, self.escapes, self.lines)
        return LaunchOptions(
            program=sys.executable,
            args=["-I", "-S", str(PROGRAM), *map(str, words)],
            tail_lines=self.tail_lines,
            placement=Placement(node_id=node_id),
        )


def stream(seed: int, what: str) -> random.Random:
    """Random numbers for one purpose: those of others, which come when they come, do not change them."""
    return random.Random(f"{seed} {what}")  # noqa: S311  # not for secrets


def random_life(rng: random.Random) -> Life:
    """The next life."""
    return Life(
        seconds=_seconds(rng),
        end=_end(rng),
        on_term=rng.choices(("dies", "ignores", f"exit {rng.randint(1, 99)}"), (5, 2, 3))[0],
        escapes=rng.choices(("no", "heeds", "ignores"), (7, 2, 1))[0],
        lines=rng.choice((0, 1, 3, 20)),
        tail_lines=rng.choice((0, 1, 5, 100)),
        slot=rng.choice((None, *SLOTS)),
        asks=_asks(rng),
        again=rng.choices((0, 1, 3), (7, 2, 1))[0],
        rival=rng.random() < 0.05,
        second_look=rng.random() < 0.2,
    )


def random_group(rng: random.Random) -> int:
    """How many are launched with the next message; 0: one, with `launch`."""
    return rng.choices((0, rng.randint(1, 3), rng.randint(4, 12)), (8, 2, 1))[0]


def _seconds(rng: random.Random) -> float:
    kind = rng.random()
    if kind < 0.3:
        return 0.0
    if kind < 0.75:
        return round(min(rng.expovariate(1 / 2.0), 10.0), 3)
    if kind < 0.93:
        return round(rng.uniform(5.0, 15.0), 3)
    return 60.0


def _end(rng: random.Random) -> str:
    if rng.random() < 0.75:
        return f"exit {rng.choice((0, 0, 1, 3, rng.randint(4, 255)))}"
    signums = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
    return f"signal {int(rng.choice(signums))}"


def _asks(rng: random.Random) -> tuple[Ask, ...]:
    """None for most; some end a launch that has not started yet, and some are asked twice."""
    if rng.random() < 0.6:
        return ()
    count = rng.choices((1, 2), (4, 1))[0]
    return tuple(
        Ask(
            after=rng.choice((0.0, 0.0, round(rng.uniform(0, 0.3), 3), round(rng.uniform(0, 8), 3))),
            timeout=rng.choice((None, None, 0.0, 0.5, 3.0, float("inf"))),
        )
        for _ in range(count)
    )
