"""What becomes of procs on hosts that are lost, each in its own way, at the same time: seen from outside."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator

from hosts import Host
from remote import TREE, Deaths, Exit, Proc, Session

#: Seconds after which what has not happened will not happen.
DEADLINE = 40.0


@dataclasses.dataclass
class Loss:
    """A proc whose host is lost, by the monotonic clock.  began: when it was, at the latest."""

    session: Session
    proc: Proc
    deaths: Deaths
    began: float = 0.0

    @property
    def exits(self) -> list[Exit]:
        """What its port has said; more than one would be a lie."""
        return self.session.exits_of(self.proc)

    @property
    def gone_after(self) -> float | None:
        """Seconds until its last process was gone; None while one lives."""
        last = self.deaths.last()
        return None if last is None else last - self.began

    @property
    def told_after(self) -> float | None:
        """Seconds until its port resolved; None until then."""
        return self.exits[0].at - self.began if self.exits else None

    def is_over(self) -> bool:
        return self.gone_after is not None and self.told_after is not None


@contextlib.contextmanager
def losses(session: Session, ways: dict[Host, Callable[[Host], None]]) -> Iterator[dict[str, Loss]]:
    """Start a TREE on each host, lose one after the other in its way, wait for the ends; {host name: loss}."""
    with contextlib.ExitStack() as stack:
        found = {}
        for host in ways:
            proc = session.start(f"on {host.name}", host, TREE)
            found[host.name] = Loss(session, proc, stack.enter_context(Deaths(proc.pids())))
        for host, lose in ways.items():
            lose(host)
            found[host.name].began = time.monotonic()
        _wait(found.values())
        yield found


def _wait(found: Iterable[Loss]) -> None:
    """Without an assertion: each test states one fact of what has been seen."""
    give_up = time.monotonic() + DEADLINE
    while not all(loss.is_over() for loss in found) and time.monotonic() < give_up:
        time.sleep(0.01)
