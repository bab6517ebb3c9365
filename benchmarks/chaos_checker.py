"""The independent checker of the chaos run: compares what ports said with the stamps that the programs wrote.

Knows nothing of how the package works, only what it promises (design.md). Every result needs a cause: an end stamp, a
request, or a blow. A blow to an agent or to the spawner is never one: nobody may notice it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from chaos_records import Blow, Launch, Request, Stamps

from ray_launcher import Exited, Failed, Signaled

#: What the checker can find about launches; `chaos_rest` finds more.
KINDS = (
    "started_twice",
    "exits_lost",
    "exits_wrong",
    "exits_doubled",
    "ports_hung",
    "ran_after_result",
    "requests_lost",
)
_KILL, _TERM = 9, 15


@dataclass(frozen=True)
class Limits:
    """Seconds that things may take; generous, since machines are busy.

    blow: after which the loss of a supervisor fails nobody's launch any more.  node: the same for a raylet, which
    Ray takes long to miss.  leftovers: until what a leader has left is gone.  request: until one is carried out.
    starting: from a program's start until its first stamp.
    clock: by which stamps and notes of the same moment may differ.  delivery: from a program's end stamp until the
    loss of its supervisor cannot lose its exit any more.
    """

    blow: float = 10.0
    node: float = 60.0
    leftovers: float = 15.0
    request: float = 20.0
    starting: float = 3.0
    delivery: float = 10.0
    clock: float = 0.05


@dataclass(frozen=True)
class Violation:
    """One thing that must not be, with what is known about it."""

    kind: str
    name: str
    text: str
    evidence: dict[str, Any] = field(default_factory=dict)


def cases(
    launches: Iterable[Launch], stamps: Callable[[str], Stamps], blows: list[Blow], limits: Limits | None = None
) -> list[Case]:
    """One for each launch. `stamps` gives those of a launch, by its name."""
    return [Case(launch, stamps(launch.name), blows, limits or Limits()) for launch in launches]


class Case:
    """One launch on trial."""

    def __init__(self, launch: Launch, stamps: Stamps, blows: list[Blow], limits: Limits) -> None:
        self.launch, self.stamps, self.limits = launch, stamps, limits
        self._blows = blows
        self._ended = stamps.ends("exit", "term", "signal").values()

    def violations(self) -> list[Violation]:
        """All that must not be."""
        return [Violation(kind, self.launch.name, text, self.evidence()) for kind, text in self._faults()]

    def _faults(self) -> Iterator[tuple[str, str]]:
        """(kind, text) of each."""
        launch = self.launch
        if len(self.stamps.starts) > 1:
            yield "started_twice", f"started {len(self.stamps.starts)} times"
        if launch.hung:
            yield "ports_hung", "its port did not resolve in time"
        if not launch.results:
            yield "exits_lost", "its port never resolved"
            return
        yield from self._doubled()
        yield from self._ran_after()
        yield from self._requests()
        for text in (self._contradiction(), self._wrong_tail(), self._baseless_term()):
            if text is not None:
                yield "exits_wrong", text

    def evidence(self) -> dict[str, Any]:
        """All that is known about it."""
        own = (blow for blow in self._blows if blow.name in (None, self.launch.name))
        near = [blow for blow in own if self.launch.launched - 15 <= blow.when <= self.launch.told + 5]
        return {
            "launch": {**asdict(self.launch), "results": [(when, str(result)) for when, result in self.launch.results]},
            "stamps": [f"{stamp.word} {stamp.when} {stamp.pid} {' '.join(stamp.more)}" for stamp in self.stamps.all],
            "blows": [asdict(blow) for blow in near],
        }

    # -- results and their causes ---------------------------------------------------------------------------------

    def _contradiction(self) -> str | None:
        """Why the result cannot be true; None if it can."""
        kind = self.launch.results[0][1].kind
        if isinstance(kind, Exited):
            return None if kind.code in self.stamps.ends("exit", "term") else f"no stamp says that it {kind}"
        if isinstance(kind, Signaled):
            known = kind.signal in self.stamps.ends("signal") or self._sent(kind.signal)
            return None if known else f"nothing says why it was {kind}"
        return self._baseless_failure(kind)

    def _baseless_failure(self, kind: Failed) -> str | None:
        cause = next((cause for pattern, cause in _CAUSES if re.search(pattern, kind.reason)), None)
        if cause is None:
            return f"it {kind}"
        return None if cause(self) else f"nothing says why it {kind}"

    def sent_term(self, until: float) -> bool:
        """A TERM came, or may have come, to it."""
        return any(request.timeout is not None for request in self._requests_until(until)) or self.lost_node(until)

    def _sent(self, signum: int) -> bool:
        told = self.launch.told
        if signum == _TERM and self.sent_term(told):
            return self.launch.life.on_term == "dies" or self.stamps.start is None
        return signum == _KILL and self._sent_kill(told)

    def _sent_kill(self, until: float) -> bool:
        struck = any(blow.name == self.launch.name and blow.when <= until for blow in self._blows)
        return struck or self.lost_node(until) or any(_due(each) <= until for each in self._requests_until(until))

    def _requests_until(self, until: float) -> list[Request]:
        return [request for request in self.launch.requests if request.when <= until]

    def _baseless_term(self) -> str | None:
        for when in self.stamps.ends("term").values():
            if not self.sent_term(when + self.limits.clock):
                return "it got a TERM that nobody sent"
        return None

    # -- blows ----------------------------------------------------------------------------------------------------

    def lost_supervisor(self) -> bool:
        """Its supervisor was struck between launch and result, or so shortly before that it may have come to it."""
        latest = min([self.launch.told, *(when + self.limits.delivery for when in self._ended)])
        struck = (blow for blow in self._blows if blow.layer in ("supervisor", "guard") and blow.when <= latest)
        return any(self._hits(blow, self.limits.blow) for blow in struck)

    def _struck(self, layer: str) -> bool:
        """That layer was, on the node where it ran, between start and result."""
        start = self.stamps.start
        struck = (blow for blow in self._blows if start is not None and blow.layer == layer and blow.node == start.node)
        return any(self.launch.launched <= blow.when <= self.launch.told for blow in struck)

    def lost_node(self, until: float | None = None) -> bool:
        """Its raylet was struck; who asks for a node that is gone has lost it for good."""
        until = self.launch.told if until is None else until
        patience = float("inf") if self.launch.node is not None and self.stamps.start is None else self.limits.node
        struck = (blow for blow in self._blows if blow.layer == "raylet" and blow.when <= until)
        return any(self._hits(blow, patience) for blow in struck)

    def _hits(self, blow: Blow, patience: float) -> bool:
        """It could concern this launch: it struck the supervisor or node that ran it, or where it was to run."""
        start = self.stamps.start
        if (self.launch.node if start is None else start.node) not in (None, blow.node):
            return False
        if start is None:
            return blow.when >= self.launch.launched - patience
        if blow.layer == "raylet" or blow.pid == start.supervisor:
            return True
        return start.when - self.limits.starting <= blow.when <= start.when  # it has never seen its first parent

    def rivalled(self) -> bool:
        """Its id was another's, and it never ran."""
        return self.launch.rival and self.stamps.start is None

    def ended_unstarted(self) -> bool:
        """It was asked to end, and never ran."""
        return bool(self._requests_until(self.launch.told)) and self.stamps.start is None

    def never_served(self) -> bool:
        """There was no supervisor for it, because it was struck, and it never ran."""
        return self.stamps.start is None and (self.lost_supervisor() or self.lost_node())

    def lost_below(self) -> bool:
        """It went with its supervisor or its node."""
        return self.lost_supervisor() or self.lost_node()

    def lost_track_of(self) -> bool:
        """It was on its way when the spawner was struck, never ran, and a node that was struck knew nothing.

        Or it ran, and its supervisor was struck, and the agent that knew of its end.
        """
        if self.stamps.start is not None:
            return self.lost_node() or (self.lost_supervisor() and self._struck("agent"))
        blows = [blow for blow in self._blows if blow.when <= self.launch.told]
        on_its_way = any(
            blow.layer == "spawner" and blow.when >= self.launch.launched - self.limits.blow for blow in blows
        )
        layers = ("raylet", "supervisor", "guard")
        lost = (blow for blow in blows if blow.layer in layers and self.launch.node in (None, blow.node))
        return on_its_way and any(lost)

    # -- the rest -------------------------------------------------------------------------------------------------

    def _doubled(self) -> Iterator[tuple[str, str]]:
        first = self.launch.results[0][1]
        if len(self.launch.results) > 1:
            yield "exits_doubled", f"its callback was called {len(self.launch.results)} times"
        if self.launch.second_look not in (None, first):
            yield "exits_doubled", f"asked again, its port said: {self.launch.second_look}"

    def _ran_after(self) -> Iterator[tuple[str, str]]:
        if self.launch.survivors:
            yield "ran_after_result", f"alive when its port resolved: {', '.join(self.launch.survivors)}"
        failed = isinstance(self.launch.results[0][1].kind, Failed)
        escaped = {pid for pid, _ in self.stamps.escaped}
        for stamp in self.stamps.all:
            patience = self.limits.leftovers if stamp.pid in escaped and not failed else self.limits.clock
            if stamp.when > self.launch.told + patience:
                yield "ran_after_result", f"wrote {stamp.word!r} {stamp.when - self.launch.told:.2f} s after its result"
                return

    def _requests(self) -> Iterator[tuple[str, str]]:
        last = max((stamp.when for stamp in self.stamps.all), default=0.0)
        for request in self.launch.requests:
            if last > _due(request, self.launch.life.on_term) + self.limits.request:
                yield "requests_lost", f"lived on after {request}"
                return

    def _wrong_tail(self) -> str | None:
        """What stderr_tail should be depends on how far it came."""
        _, result = self.launch.results[0]
        life, tail = self.launch.life, result.stderr_tail
        if isinstance(result.kind, Failed):
            return None if tail in (None, []) else f"a failure with a tail: {tail}"
        lines = [f"{self.launch.name} {n}" for n in range(life.lines)]
        whole = bool(self.stamps.ends("exit", "signal"))
        written = [len(lines)] if whole else range(len(lines) + 1)
        if any(tail == lines[max(0, n - life.tail_lines) : n] for n in written):
            return None
        return f"stderr_tail is {tail}, of {life.lines} lines, the last {life.tail_lines} wanted"


def _due(request: Request, on_term: str = "ignores") -> float:
    """When it must have ended the proc: at once, or with KILL, if its TERM does not."""
    if request.timeout is None or on_term != "ignores":
        return request.when
    return request.when + request.timeout


#: What a failure says, and what must have happened then. Whatever says something else is wrong.
_CAUSES: tuple[tuple[str, Callable[[Case], bool]], ...] = (
    (r"already running", Case.rivalled),
    (r"ended on request before", Case.ended_unstarted),
    (r"supervisor was lost", Case.lost_below),
    (r"no supervisor on the node|supervisor is ending", Case.never_served),
    (r"while the spawner was started again", Case.lost_track_of),
    (r"\bnode [0-9a-f]+ \(.*\) (was lost|did not start)|no living node has the id", Case.lost_node),
)
