"""Many launches with one message: their exits come back through one stream instead of one Ray task each."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Coroutine
from typing import Any

import ray
from ray import ObjectRef

from ray_launcher.port import ExitPort, Source, result_of_error, result_of_report, settle


class Batch:
    """The ports of one `launch_many`, and the stream that resolves them."""

    def __init__(self, spawner: Any, launcher: str, number: int, size: int) -> None:
        self._spawner, self._launcher, self._number = spawner, launcher, number
        self._sources = [Source(self._attach) for _ in range(size)]
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
        if ray.is_initialized():  # else the call would start a cluster
            self._spawner.serve_release.remote(self._launcher, self._number)

    def _resolve(self, source: Source, outcome: bytes) -> None:
        source.raw = outcome
        try:
            reported, value = pickle.loads(outcome)  # noqa: S301  # from our own spawner
        except Exception as error:  # noqa: BLE001  # a report of a class that this process does not have
            reported, value = True, error
        settle(source.result, result_of_report(value) if reported else result_of_error(value))

    def _attach(self, source: Source) -> ObjectRef[Any]:
        """A task of the spawner's own with this outcome: for those who need a ref after all."""
        index = self._sources.index(source)
        ref: ObjectRef[Any] = self._spawner.serve_attach.remote(self._launcher, self._number, index, source.raw)
        return ref


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
