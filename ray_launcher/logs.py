"""Reading the output of procs from the driver, wherever their nodes are."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timezone
from functools import partial
from typing import Any, NamedTuple

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from ray_launcher.cluster.logfiles import Piece
from ray_launcher.cluster.wire import Location, log_name
from ray_launcher.errors import LaunchError, LogsLostError


@dataclasses.dataclass(frozen=True)
class LogChunk:
    """Some bytes that a proc wrote. stream: "stdout" or "stderr".

    time: when they were there, UTC by the clock of their node, if that was asked for; good to a second, to five after a
    silence.
    skipped: so many bytes before them were freed before they were read, see `LaunchOptions.log_limit`; these begin with
    a line.  lost: why what else it has written cannot be read, or has not been: its node is lost. There are no bytes
    then.
    """

    proc_id: str
    stream: str
    data: bytes
    time: datetime | None = None
    skipped: int = 0
    lost: str = ""


class Wanted(NamedTuple):
    """What is to be read. streams: "stdout", "stderr", "value".

    follow: until each proc has ended; otherwise what is there now.  tail: start at the last so many lines.
    since: start at what was written at that time (`time.time`).  timed: whether chunks have their times.
    """

    streams: tuple[str, ...] = ("stdout", "stderr")
    follow: bool = False
    tail: int | None = None
    since: float | None = None
    timed: bool = False

    @property
    def from_start(self) -> bool:
        """Whether all of it is."""
        return self.tail is None and self.since is None


@dataclasses.dataclass
class _File:
    """attempt: of its proc. offset: None where it is not known yet."""

    proc_id: str
    stream: str
    token: str
    attempt: int
    offset: int | None = 0


_Files = dict[str, _File]  # by the files' names

#: Calls under way to one agent for the same reader. What comes to be read meanwhile waits for one of them to return.
_CALLS = 4
#: The spawner's answer where it is gone for good.
_OVER = Location(None, "", 0, False, None)


class LogStreams:
    """The streams of some procs, a few calls under way per node; iterate over it for the chunks.

    locations: the spawner's answers to `locate`.  again(proc_id, attempt, silent): the same for that attempt; silent:
    the agent of its node has not answered.  connected: whether this process can still ask them.
    A proc that never came to a node has no output. Agents and the spawner may be killed and come back; a node that
    does not is told in a chunk.
    """

    def __init__(
        self,
        session: str,
        locations: Mapping[str, ObjectRef[Any]],
        again: Callable[[str, int, bool], ObjectRef[Any]],
        connected: Callable[[], bool],
        wanted: Wanted,
    ) -> None:
        self._session, self._connected, self._again, self._wanted = session, connected, again, wanted
        self._calls: dict[ObjectRef[Any], Callable[[Any], Iterable[LogChunk]]] = {
            ref: partial(self._located, proc_id, wanted.from_start) for proc_id, ref in locations.items()
        }  # under way, and what to do with the answers
        self._unread: dict[Any, _Files] = {}  # by agent: those that no call asks for
        self._reading: Counter[Any] = Counter()  # calls, by agent
        self._following: dict[str, tuple[int, int]] = {}  # by token: the next attempt, and files that are read before

    def __iter__(self) -> Iterator[LogChunk]:
        while self._calls:
            if not self._connected():  # Ray would start a cluster of its own
                raise LaunchError("this process is no longer connected to the launcher's cluster: Ray was shut down")
            ray.wait(list(self._calls))
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
            chunks = [chunk for ref in ready for chunk in self._calls.pop(ref)(ref)]
            self._read()  # the nodes are at it while these are looked at
            yield from chunks

    # -- where they are -------------------------------------------------------------------------------------------

    def _located(self, proc_id: str, from_start: bool, ref: ObjectRef[Any]) -> Iterable[LogChunk]:
        place: Location | None = _answer(ref)
        if place is None:
            return ()
        following = place.attempt + 1 if place.may_follow and self._wanted.follow else None
        if place.agent is None:
            if following is not None:
                self._ask_again(proc_id, following)
            return self._lost(proc_id, place)
        if following is not None:
            self._following[place.token] = following, len(self._wanted.streams)
        names = {log_name(self._session, proc_id, place.token, stream): stream for stream in self._wanted.streams}
        offset = 0 if from_start else None
        files = {name: _File(proc_id, stream, place.token, place.attempt, offset) for name, stream in names.items()}
        self._add(place.agent, files)
        return ()

    def _ask_again(self, proc_id: str, attempt: int) -> None:
        self._calls[self._again(proc_id, attempt, False)] = partial(self._located, proc_id, True)

    def _seek(self, files: _Files) -> None:
        """Their agent has not answered: it, or another of its node, comes back, or the node is lost."""
        by_proc: dict[tuple[str, int], _Files] = {}
        for name, file in files.items():
            by_proc.setdefault((file.proc_id, file.attempt), {})[name] = file
        for (proc_id, attempt), some in by_proc.items():
            self._calls[self._again(proc_id, attempt, True)] = partial(self._found, proc_id, some)

    def _found(self, proc_id: str, files: _Files, ref: ObjectRef[Any]) -> Iterable[LogChunk]:
        place: Location | None = _answer(ref, _OVER)
        token = next(iter(files.values())).token
        if place is _OVER:
            return ()
        if place is None or place.token != token:
            return (LogChunk(proc_id, self._wanted.streams[0], b"", lost=f"the session has forgotten {proc_id!r}"),)
        if place.agent is not None:
            self._add(place.agent, files)
            return ()
        following, _ = self._following.pop(token, (None, 0))
        if following is not None:
            self._ask_again(proc_id, following)
        return self._lost(proc_id, place)

    def _lost(self, proc_id: str, place: Location) -> Iterable[LogChunk]:
        if place.node is None:  # it never came to one
            return ()
        reason = f"node {place.node} is lost, and with it what {proc_id!r} wrote there and was not read"
        return (LogChunk(proc_id, self._wanted.streams[0], b"", lost=reason),)

    # -- what is in them ------------------------------------------------------------------------------------------

    def _add(self, agent: Any, files: _Files) -> None:
        unknown = [name for name, file in files.items() if file.offset is None]
        if unknown:
            ref = agent.begins.remote(unknown, self._wanted.tail, self._wanted.since)
            self._calls[ref] = partial(self._begin, agent, files)
        else:
            self._unread.setdefault(agent, {}).update(files)

    def _begin(self, agent: Any, files: _Files, ref: ObjectRef[Any]) -> Iterable[LogChunk]:
        offsets: dict[str, int] | None = _answer(ref)
        if offsets is None:
            self._seek(files)
        else:
            for name, offset in offsets.items():
                files[name].offset = offset
            self._add(agent, files)
        return ()

    def _read(self) -> None:
        for agent in list(self._unread):
            if self._reading[agent] < _CALLS:
                files = self._unread.pop(agent)
                wanted = self._wanted
                wants = {name: (file.offset, file.token if wanted.follow else "") for name, file in files.items()}
                self._reading[agent] += 1
                self._calls[agent.read.remote(wants, wanted.timed)] = partial(self._news, agent, files)

    def _news(self, agent: Any, files: _Files, ref: ObjectRef[Any]) -> Iterator[LogChunk]:
        self._reading[agent] -= 1
        news: dict[str, Piece] | None = _answer(ref)
        if news is None:
            self._seek(files)
            return
        for name, piece in news.items():
            file = files.pop(name)
            yield from _chunks(file, piece)
            file.offset = piece.start + len(piece.data)
            if not piece.last:
                files[name] = file  # now the last: those that the answer had no room for come first next time
            else:
                self._ended(file.proc_id, file.token)
        if files:
            self._add(agent, files)

    def _ended(self, proc_id: str, token: str) -> None:
        """One of its files is read to its end."""
        if token in self._following:
            following, files = self._following.pop(token)
            if files > 1:
                self._following[token] = following, files - 1
            else:
                self._ask_again(proc_id, following)


def _chunks(file: _File, piece: Piece) -> Iterator[LogChunk]:
    """One for each time that the bytes have."""
    skipped = piece.start - file.offset if file.offset else 0
    at = 0
    for count, when in piece.times or ([(len(piece.data), None)] if piece.data else []):
        data = piece.data[at : at + count] if count < len(piece.data) else piece.data
        time = None if when is None else datetime.fromtimestamp(when, timezone.utc)
        yield LogChunk(file.proc_id, file.stream, data, time, skipped)
        at, skipped = at + count, 0


def _answer(ref: ObjectRef[Any], none: Any = None) -> Any:
    """`none` where there is none, since who was asked, or the node, is gone. Raises RayTaskError: a mistake of ours."""
    try:
        return ray.get(ref)
    except RayTaskError:
        raise
    except RayError:
        return none


def lines_of(chunks: Iterable[LogChunk], tail: int | None) -> Iterator[str]:
    """The lines of one stream, without their newlines; of those, the last `tail`. Timed ones behind their time.

    Raises `LogsLostError` behind the last that can be read.
    """
    lost: list[str] = []
    lines = _split(chunks, lost)
    yield from lines if tail is None else deque(lines, maxlen=tail)
    if lost:
        raise LogsLostError("; ".join(lost))


def _split(chunks: Iterable[LogChunk], lost: list[str]) -> Iterator[str]:
    rest, begun = bytearray(), ""  # of a line that goes on; looked at once only, however long it gets
    for chunk in chunks:
        if chunk.lost:
            lost.append(chunk.lost)
        if chunk.skipped and rest:
            yield begun + rest.decode("utf-8", "replace")
            rest = bytearray()
        stamp = "" if chunk.time is None else f"{stamp_of(chunk.time)} "
        first, *more = chunk.data.split(b"\n")
        begun = begun if rest else stamp
        rest += first
        for line in more:
            yield begun + rest.decode("utf-8", "replace")
            rest, begun = bytearray(line), stamp
    if rest:
        yield begun + rest.decode("utf-8", "replace")


def stamp_of(time: datetime) -> str:
    """ISO 8601 in UTC, with milliseconds."""
    return time.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
