"""Reading the output of procs from the driver, wherever their nodes are."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from ray_launcher.cluster.wire import log_name


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

    follow: until each proc has ended; otherwise what is there now. A proc that never came to a node has no output,
    and neither has one whose node was lost from then on.
    """

    def __init__(
        self, session: str, locations: Mapping[str, ObjectRef[Any]], streams: tuple[str, ...], follow: bool
    ) -> None:
        self._session, self._streams, self._follow = session, streams, follow
        self._locating: dict[ObjectRef[Any], str] = {ref: proc_id for proc_id, ref in locations.items()}
        self._reading: dict[ObjectRef[Any], dict[str, _File]] = {}

    def __iter__(self) -> Iterator[LogChunk]:
        while self._locating or self._reading:
            ready, _ = ray.wait([*self._locating, *self._reading])
            for ref in ready:
                try:
                    yield from self._take(ref, ray.get(ref))
                except RayError:
                    self._locating.pop(ref, None)
                    self._reading.pop(ref, None)

    def _take(self, ref: ObjectRef[Any], value: Any) -> Iterator[LogChunk]:
        if ref in self._locating:
            proc_id = self._locating.pop(ref)
            if value is not None:
                agent, token = value
                names = {log_name(self._session, proc_id, token, stream): stream for stream in self._streams}
                self._read({name: _File(proc_id, stream, token, agent) for name, stream in names.items()})
            return
        files = self._reading.pop(ref)
        for name, (data, ended) in value.items():
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
            self._reading[ref] = files


def lines_of(chunks: Iterable[LogChunk], tail: int | None) -> Iterator[str]:
    """The lines of one stream; `tail` drops all but the last so many of what there is at the start."""
    lines = _split(chunks)
    return lines if tail is None else iter(deque(lines, maxlen=tail))


def _split(chunks: Iterable[LogChunk]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk.data).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")
