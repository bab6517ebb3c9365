"""Reading the output of procs from the driver, wherever their nodes are."""

from __future__ import annotations

import dataclasses
from collections import deque
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
    agent: Any
    offset: int = 0
    ended: bool = False


class LogStreams:
    """The streams of some procs, one call under way per proc; iterate over it for the chunks.

    locations: the spawner's answers to `locate`.  connected: whether this process can still ask them.
    follow: until each proc has ended; otherwise what is there now.  tail: start at the last so many lines.
    A proc that never came to a node has no output, and neither has one whose node was lost from then on.
    """

    def __init__(
        self,
        session: str,
        locations: Mapping[str, ObjectRef[Any]],
        streams: tuple[str, ...],
        connected: Callable[[], bool],
        *,
        follow: bool,
        tail: int | None = None,
    ) -> None:
        self._session, self._streams, self._connected = session, streams, connected
        self._follow, self._tail = follow, tail
        self._calls: dict[ObjectRef[Any], Callable[[Any], Iterator[LogChunk]]] = {
            ref: partial(self._located, proc_id) for proc_id, ref in locations.items()
        }  # under way, and what to do with the answers

    def __iter__(self) -> Iterator[LogChunk]:
        while self._calls:
            if not self._connected():  # Ray would start a cluster of its own
                raise LaunchError("this process is no longer connected to the launcher's cluster: Ray was shut down")
            ray.wait(list(self._calls))
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
            for ref in ready:
                go_on = self._calls.pop(ref)
                try:
                    answer = ray.get(ref)
                except RayError:  # the node is lost
                    continue
                yield from go_on(answer)

    def _located(self, proc_id: str, location: tuple[Any, str] | None) -> Iterator[LogChunk]:
        agent, token = location or (None, "")
        if agent is not None:
            names = {log_name(self._session, proc_id, token, stream): stream for stream in self._streams}
            files = {name: _File(proc_id, stream, token, agent) for name, stream in names.items()}
            if self._tail is None:
                self._read(files)
            else:
                self._calls[agent.tails.remote(list(files), self._tail)] = partial(self._start, files)
        return iter(())

    def _start(self, files: dict[str, _File], offsets: dict[str, int]) -> Iterator[LogChunk]:
        for name, offset in offsets.items():
            files[name].offset = offset
        self._read(files)
        return iter(())

    def _news(self, files: dict[str, _File], news: dict[str, tuple[bytes, bool]]) -> Iterator[LogChunk]:
        for name, (data, ended) in news.items():
            file = files[name]
            file.offset += len(data)
            file.ended = ended
            if data:
                yield LogChunk(file.proc_id, file.stream, data)
        self._read({name: file for name, file in files.items() if not file.ended})

    def _read(self, files: dict[str, _File]) -> None:
        if files:
            some = next(iter(files.values()))
            live = {some.token} if self._follow else {"-"}
            ref = some.agent.read.remote({name: file.offset for name, file in files.items()}, live)
            self._calls[ref] = partial(self._news, files)


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
