"""Many launches with one message: their exits come back through one stream instead of one Ray task each."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import threading
from collections.abc import Coroutine
from functools import partial
from typing import Any

from ray import ObjectRef

from ray_launcher.errors import ProcLauncherError, describe_exception
from ray_launcher.exits import ProcExitResult
from ray_launcher.port import (
    ExitPort,
    Source,
    connection,
    failed,
    result_of_error,
    result_of_raised,
    result_of_report,
    settle,
)
from ray_launcher.spawner import REPORTED


class Batch:
    """The ports of one `launch_many`, and the stream that resolves them."""

    def __init__(self, spawner: Any, launcher: str, number: int, size: int) -> None:
        self._spawner, self._launcher, self._number = spawner, launcher, number
        self._connection = connection()
        self._lock = threading.Lock()
        self._attached: list[ObjectRef[Any]] = []  # refs that the spawner must still answer
        self._sources = [Source(partial(self._attach, index)) for index in range(size)]
        self.ports = [ExitPort(None, source) for source in self._sources]

    def send(self, payload: bytes) -> None:
        """Submit the one message, and resolve the ports as the answers come."""
        stream = self._spawner.serve_batch.options(num_returns="streaming").remote(
            self._launcher, self._number, payload
        )
        _streams.run(self._receive(stream))

    async def _receive(self, stream: Any) -> None:
        try:
            async for ref in stream:
                for index, outcome in await ref:
                    self._resolve(self._sources[index], outcome)
            error: BaseException = RuntimeError("the spawner's answers ended early")
        except Exception as raised:  # noqa: BLE001  # whatever ended the stream ends the ports
            error = raised
        for source in self._sources:
            settle(source.result, result_of_error(error))
        with self._lock:
            attached, self._attached = self._attached, []
        for ref in attached:  # the spawner needs the outcomes for these
            with contextlib.suppress(Exception):
                await ref
        if connection() == self._connection:  # else the call would start a cluster
            self._spawner.serve_release.remote(self._launcher, self._number)

    def _resolve(self, source: Source, outcome: bytes) -> None:
        with self._lock:
            source.raw = outcome
        settle(source.result, _result_of_outcome(outcome))

    def _attach(self, index: int, source: Source) -> ObjectRef[Any]:
        """A task of the spawner's own with this outcome: for those who need a ref after all."""
        if connection() != self._connection:
            raise ProcLauncherError("the port has no ref any more: Ray was shut down in this process")
        with self._lock:
            ref: ObjectRef[Any] = self._spawner.serve_attach.remote(self._launcher, self._number, index, source.raw)
            if source.raw is None:
                self._attached.append(ref)
        return ref


def _result_of_outcome(outcome: bytes) -> ProcExitResult:
    kind, pickled = outcome[:1], outcome[1:]
    try:
        value = pickle.loads(pickled)  # noqa: S301  # from our own spawner
    except Exception as error:  # noqa: BLE001  # of a class that this process does not have, say
        text = describe_exception(error)
        if kind == REPORTED:
            return failed(f"failed to decode exit result: the report cannot be unpickled here: {text}")
        return failed(f"spawner raised: an exception that cannot be unpickled here: {text}")
    return result_of_report(value) if kind == REPORTED else result_of_raised(value)


class _Streams:
    """One thread with an event loop, started with the first batch, receives all streams of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, receiving: Coroutine[Any, Any, None]) -> None:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="ray_launcher-streams", daemon=True).start()
        asyncio.run_coroutine_threadsafe(receiving, self._loop)


_streams = _Streams()
