"""Reading the output of procs from the driver, wherever their nodes are."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from ray_launcher.cluster.wire import log_name
from ray_launcher.errors import LaunchError


@dataclasses.dataclass(frozen=True)
class LogChunk:
    """Some bytes that a proc wrote. stream: "stdout" or "stderr"."""

    proc_id: str
    stream: str
    data: bytes


@dataclasses.dataclass
class _File:
    proc_id: str
    stream: str
    token: str
    offset: int = 0


_Files = dict[str, _File]  # by the files' names


#: Calls under way to one agent for the same reader. What comes to be read meanwhile waits for one of them to return.
_CALLS = 4


class LogStreams:
    """The streams of some procs, a few calls under way per node; iterate over it for the chunks.

    locations: the spawner's answers to `locate`.  again(proc_id, attempt): the same for that attempt.
    connected: whether this process can still ask them.
    follow: until each proc has ended; otherwise what is there now.  tail: start at the last so many lines.
    A proc that never came to a node has no output, and neither has one whose node was lost from then on.
    """

    def __init__(  # noqa: PLR0913  # how to reach them, and which
        self,
        session: str,
        locations: Mapping[str, ObjectRef[Any]],
        again: Callable[[str, int], ObjectRef[Any]],
        streams: tuple[str, ...],
        connected: Callable[[], bool],
        *,
        follow: bool,
        tail: int | None = None,
    ) -> None:
        self._session, self._streams, self._connected, self._again = session, streams, connected, again
        self._follow = follow
        self._calls: dict[ObjectRef[Any], Callable[[Any], Iterable[LogChunk]]] = {
            ref: partial(self._located, proc_id, tail) for proc_id, ref in locations.items()
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

    def _located(self, proc_id: str, tail: int | None, ref: ObjectRef[Any]) -> Iterable[LogChunk]:
        agent, token, following = _answer(ref) or (None, "", None)
        if not self._follow:
            following = None
        if agent is None and following is not None:  # that attempt never came to a node, or its node is lost
            self._ask_again(proc_id, following)
        elif agent is not None:
            if following is not None:
                self._following[token] = following, len(self._streams)
            names = {log_name(self._session, proc_id, token, stream): stream for stream in self._streams}
            files = {name: _File(proc_id, stream, token) for name, stream in names.items()}
            if tail is None:
                self._add(agent, files)
            else:
                self._calls[agent.tails.remote(list(files), tail)] = partial(self._start, agent, files)
        return ()

    def _start(self, agent: Any, files: _Files, ref: ObjectRef[Any]) -> Iterable[LogChunk]:
        offsets = _answer(ref)
        if offsets is not None:
            for name, offset in offsets.items():
                files[name].offset = offset
            self._add(agent, files)
        return ()

    def _add(self, agent: Any, files: _Files) -> None:
        self._unread.setdefault(agent, {}).update(files)

    def _read(self) -> None:
        for agent in list(self._unread):
            if self._reading[agent] < _CALLS:
                files = self._unread.pop(agent)
                wants = {name: (file.offset, file.token if self._follow else "") for name, file in files.items()}
                self._reading[agent] += 1
                self._calls[agent.read.remote(wants)] = partial(self._news, agent, files)

    def _news(self, agent: Any, files: _Files, ref: ObjectRef[Any]) -> Iterable[LogChunk]:
        self._reading[agent] -= 1
        news: dict[str, tuple[bytes, bool]] | None = _answer(ref)
        if news is None:
            return
        for name, (data, ended) in news.items():
            file = files.pop(name)
            file.offset += len(data)
            if not ended:
                files[name] = file  # now the last: those that the answer had no room for come first next time
            else:
                self._ended(file.proc_id, file.token)
            if data:
                yield LogChunk(file.proc_id, file.stream, data)
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

    def _ask_again(self, proc_id: str, attempt: int) -> None:
        self._calls[self._again(proc_id, attempt)] = partial(self._located, proc_id, None)


def _answer(ref: ObjectRef[Any]) -> Any:
    """None: there is none, since the node, or the session, is lost."""
    try:
        return ray.get(ref)
    except RayError:
        return None


def lines_of(chunks: Iterable[LogChunk], tail: int | None) -> Iterator[str]:
    """The lines of one stream, without their newlines; of those, the last `tail`."""
    lines = _split(chunks)
    return lines if tail is None else iter(deque(lines, maxlen=tail))


def _split(chunks: Iterable[LogChunk]) -> Iterator[str]:
    rest = bytearray()  # of a line that goes on; looked at once only, however long it gets
    for chunk in chunks:
        first, *more = chunk.data.split(b"\n")
        rest += first
        for line in more:
            yield rest.decode("utf-8", "replace")
            rest = bytearray(line)
    if rest:
        yield rest.decode("utf-8", "replace")
