"""`ExitPort`: where the end of one proc arrives, exactly once, and what Ray's outcomes mean there."""

from __future__ import annotations

import asyncio
import atexit
import logging
import pickle
import queue
import re
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError, UnserializableException

from ray_launcher.errors import DecodeError, describe_exception
from ray_launcher.exits import Failed, ProcExitResult, decode_exit
from ray_launcher.outcomes import REPORTED, reason_of

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_logger = logging.getLogger(__name__)


class ExitPort:
    """Where a proc's end arrives: ask as often and as late as you like, the answer is one and the same.

    Can be pickled into other tasks and actors of the cluster. No thread waits for it.
    """

    def __init__(self, ref: ObjectRef[Any] | None, source: Source | None = None) -> None:
        """For launchers: `ref` is the spawner task's own, or None where `source` can make one on demand."""
        self._ref = ref
        self._source = source
        self._lock = threading.Lock()
        self._result: Future[ProcExitResult] | None = None if source is None else source.result

    @property
    def ref(self) -> ObjectRef[Any]:
        """The spawner task's ObjectRef, for `ray.wait` or as an argument: `ray.get` gives the raw report, or raises.

        The task is made when the ref is first asked for. `ray.cancel` of it ends the proc; Ray may lose a cancel that
        follows at once, `kill` is never lost.
        """
        with self._lock:
            if self._ref is None:
                assert self._source is not None  # noqa: S101  # see __init__
                self._ref = self._source.make_ref()
            return self._ref

    def wait(self, timeout: float | None = None) -> ProcExitResult:
        """Block until the proc has ended, at most `timeout` seconds. Raises TimeoutError; the proc goes on then."""
        try:
            return self._future().result(self._patience(timeout))
        except FutureTimeoutError:  # until Python 3.11 another class than the builtin
            text = f"the proc had not ended after {timeout} s"
            raise TimeoutError(text) from None

    def done(self) -> bool:
        """Whether the proc has ended."""
        return self._future().done() or self._arrived()

    def add_done_callback(self, fn: Callable[[ProcExitResult], object]) -> None:
        """Call `fn(result)` once, in a thread of the package's own; soon, when the proc has ended already.

        Callbacks run one after the other; what they raise is logged.
        """
        self._future().add_done_callback(lambda future: call_back(partial(fn, future.result())))

    def __await__(self) -> Generator[Any, None, ProcExitResult]:
        return asyncio.wrap_future(self._future()).__await__()

    def __reduce__(self) -> tuple[type[ExitPort], tuple[ObjectRef[Any]]]:
        return ExitPort, (self.ref,)

    def __repr__(self) -> str:
        return f"<ExitPort {'done' if self.done() else 'open'}>"

    def _future(self) -> Future[ProcExitResult]:
        with self._lock:
            if self._result is None:
                assert self._ref is not None  # noqa: S101  # see __init__
                self._result = watch(self._ref)
            return self._result

    def _arrived(self) -> bool:
        """Asked of Ray itself: the future hears of it a moment later."""
        return self._ref is not None and ray.is_initialized() and bool(ray.wait([self._ref], timeout=0)[0])

    def _patience(self, timeout: float | None) -> float | None:
        if timeout is None or timeout > 0 or not self.done():
            return timeout
        return None  # it is there, only the future has not heard of it


class Source:
    """Where a port gets its result, and its ref if anybody asks for one."""

    def __init__(self, make_ref: Callable[[Source], ObjectRef[Any]], cluster: str) -> None:
        """cluster: the `connection` over which its outcome will come."""
        self.result: Future[ProcExitResult] = new_result(cluster)
        self.raw: bytes | None = None  # the pickled outcome, once there
        self._make_ref = make_ref

    def make_ref(self) -> ObjectRef[Any]:
        """A spawner task that answers with this launch's raw report."""
        return self._make_ref(self)


def new_result(cluster: str) -> Future[ProcExitResult]:
    """A future that nobody who awaits it can cancel for the others, resolved when the `connection` ends."""
    result: Future[ProcExitResult] = Future()
    result.set_running_or_notify_cancel()
    _open_results.add(result, cluster)
    return result


def watch(ref: ObjectRef[Any]) -> Future[ProcExitResult]:
    """The result that `ref` will give; resolved in Ray's own thread, without one of ours."""
    result = new_result(connection())
    ref.future().add_done_callback(lambda raw: settle(result, result_of_future(raw)))
    return result


def settle(result: Future[ProcExitResult], value: ProcExitResult) -> None:
    """Set the result unless it is set: whoever comes first, Ray's answer or the end of Ray, is right."""
    if _open_results.take(result):
        result.set_result(value)


def result_of_future(raw: Future[object]) -> ProcExitResult:
    """What a spawner task's outcome means (contract 3 to 5)."""
    error = raw.exception()
    return result_of_report(raw.result()) if error is None else result_of_error(error)


def result_of_report(report: object) -> ProcExitResult:
    """Decode a raw report; what cannot be decoded is `Failed`."""
    try:
        return decode_exit(report)
    except DecodeError as error:
        return failed(f"failed to decode exit result: {describe_exception(error)}")


def result_of_outcome(outcome: bytes) -> ProcExitResult:
    """What came by the launcher's mail: see `outcomes`."""
    try:
        value = pickle.loads(outcome[1:])  # noqa: S301  # from our own spawner
    except Exception as error:  # noqa: BLE001  # of a class that this process does not have, say
        text = describe_exception(error)
        return failed(f"failed to decode exit result: the report cannot be unpickled here: {text}")
    return result_of_report(value) if outcome[:1] == REPORTED else failed(value[0])


def result_of_error(error: BaseException) -> ProcExitResult:
    """Translate a failed spawner task."""
    if isinstance(error, RayTaskError):
        return failed(reason_of(error.cause))
    if isinstance(error, UnserializableException):
        return failed(f"spawner raised: {gone_because(error)}")
    if not isinstance(error, RayError) or isinstance(error, TaskCancelledError):
        return failed(reason_of(error))
    if not isinstance(error, RayActorError) and (type(error) is RayError or "deserializ" in str(error)):
        return failed(f"failed to decode exit result: {gone_because(error)}")
    return failed(f"exit port closed ({gone_because(error)})")


def gone_because(error: BaseException) -> str:
    """Ray's own words on one line, without colours; of a long traceback the start and, above all, the end."""
    text = " ".join(_COLOUR.sub("", describe_exception(error)).split())
    return text if len(text) <= 1000 else f"{text[:300]} […] {text[-690:]}"


def failed(reason: str) -> ProcExitResult:
    """A result that the launcher had to make itself: no tail, since nothing was decoded."""
    return ProcExitResult(Failed(reason), None)


class _OpenResults:
    """The unresolved results of this process: they resolve even when `ray.shutdown()` silences their refs.

    Ray tells nobody of its shutdown, so a thread asks it twice a second, for as long as anything is open.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[Future[ProcExitResult], str] = {}
        self._watched = False

    def add(self, result: Future[ProcExitResult], cluster: str) -> None:
        with self._lock:
            self._open[result] = cluster
            if not self._watched:
                self._watched = True
                threading.Thread(target=self._ask, name="ray_launcher-shutdown-watch", daemon=True).start()

    def take(self, result: Future[ProcExitResult]) -> bool:
        with self._lock:
            return self._open.pop(result, None) is not None

    def _ask(self) -> None:
        tick = threading.Event()
        while not tick.wait(0.5):
            current = connection()
            with self._lock:
                self._watched = bool(self._open)
                orphans = [result for result, its in self._open.items() if its != current]
            for result in orphans:
                settle(result, failed("exit port closed (Ray was shut down in this process)"))
            if not self._watched:
                return


def connection() -> str:
    """The connection of this process to a cluster; another one after a shutdown and a new init."""
    return ray.get_runtime_context().get_worker_id() if ray.is_initialized() else ""


class _Thread:
    """Makes calls one after the other, in a thread that starts with the first: in Ray's own they could block it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def stop(self) -> None:
        """Make no more calls."""
        self._stopped = True

    def put(self, call: Callable[[], object]) -> None:
        self._queue.put(call)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            call = self._queue.get()
            if self._stopped:
                continue
            try:
                call()
            except BaseException:
                _logger.exception("a call in the thread %s raised", self._name)


_open_results = _OpenResults()
_callbacks = _Thread("ray_launcher-callbacks")  # the users' own, which may wait for anything
_chores = _Thread("ray_launcher-chores")
atexit.register(_callbacks.stop)  # after Ray's own hook, so called before it: that makes every open port resolve


def call_back(call: Callable[[], object]) -> None:
    """Make a call of the user's, which may wait for anything, behind those that were put here before."""
    _callbacks.put(call)


def run_soon(call: Callable[[], object], after: float = 0.0) -> None:
    """Run `call`, which must not block, in a thread of ours, `after` seconds: for what may not be done in Ray's own."""
    if not after:
        _chores.put(call)
        return
    timer = threading.Timer(after, _chores.put, [call])
    timer.daemon = True
    timer.start()
