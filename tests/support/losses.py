"""What becomes of procs on hosts that are lost, each in its own way, at the same time: seen from outside."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator

from hosts import Host
from ray_hosts import RayHosts
from remote import TREE, WORKER, Deaths, Exit, Proc, Session

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

    def is_told_once_gone(self) -> bool:
        """Whether its last process was gone before its port resolved."""
        gone_after, told_after = self.gone_after, self.told_after
        assert gone_after is not None
        assert told_after is not None
        return gone_after < told_after

    def is_over(self) -> bool:
        return self.gone_after is not None and self.told_after is not None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """losses: by way.  changes: the bystander's exits, and pids that came or went.  later: what launches on the same
    hosts came to.  survivors: the session's processes by then, without the bystander.  helpers: supervisors and guards
    that were left when the session had been closed."""

    losses: dict[str, Loss]
    changes: set[int | Exit]
    later: dict[str, Exit]
    survivors: dict[int, str]
    helpers: dict[int, str]


@contextlib.contextmanager
def outcome_of(
    hosts: RayHosts, ways: dict[str, str], lose: list[Callable[[Host], None]], *, heal: bool, **settings: float
) -> Iterator[Outcome]:
    """All ways at once, in one session with a bystander on the head: they wait most of the time.

    ways: {way: name of the host}.  lose: what does it, in the same order.  heal: whether the network is whole again
    before the later launches.
    """
    at = {way: hosts[name] for way, name in ways.items()}
    with Session(hosts, hosts.head, **settings) as session:
        bystander = session.start("bystander", hosts.head, TREE)
        before = bystander.pids()
        with losses(session, dict(zip(at.values(), lose, strict=True))) as found:
            changes = (bystander.pids() ^ before) | set(session.exits_of(bystander))
            if heal:
                hosts.heal(*at.values())
            again = {way: session.launch(f"again on {host.name}", host, WORKER) for way, host in at.items()}
            for proc in again.values():
                proc.exit(0)
            later = {way: session.ended(proc) for way, proc in again.items()}
            survivors = {pid: words for pid, words in session.procs().items() if pid not in before}
            session.close()
            helpers = session.helpers()
            yield Outcome({way: found[host.name] for way, host in at.items()}, changes, later, survivors, helpers)


@contextlib.contextmanager
def losses(session: Session, ways: dict[Host, Callable[[Host], None]]) -> Iterator[dict[str, Loss]]:
    """Start a TREE on each host, lose one after the other in its way, wait for the ends; {host name: loss}."""
    with contextlib.ExitStack() as stack:
        procs = session.start_on(ways, TREE)
        found = {proc.host.name: Loss(session, proc, stack.enter_context(Deaths(proc.pids()))) for proc in procs}
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
