"""`RayProcExecutor`: the standard library's `Executor` over a Ray cluster, with an OS process per call."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import ray

from ray_launcher import Call, LaunchOptions, ProcLauncherError, RayProcLauncher

__all__ = ["RayProcExecutor"]

_T = TypeVar("_T")


class RayProcExecutor(concurrent.futures.Executor):
    """Runs each call in a fresh interpreter on the cluster, which ends with it: nothing one call does reaches another.

    max_workers: calls at a time; None: as many as the cluster has CPUs.  launcher: the session to use; None: one of
    its own, which `shutdown` ends.  fields: of `LaunchOptions`, for every call: placement, env, cwd, time_limit ...

    A future can be cancelled while its call runs, which kills that; so does cancelling what asyncio's
    `run_in_executor` returns. What a call raises comes with its remote traceback as the cause; one that dies without
    an answer raises `CallError`.

    Raises TypeError or ValueError for bad arguments.
    """

    def __init__(
        self, max_workers: int | None = None, *, launcher: RayProcLauncher | None = None, **fields: Any
    ) -> None:
        if max_workers is not None and (isinstance(max_workers, bool) or not isinstance(max_workers, int)):
            raise TypeError(f"max_workers must be an int or None, not {type(max_workers).__name__}")
        if max_workers is not None and max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, not {max_workers}")
        LaunchOptions(**{"program": "python", **fields})
        self._owns = launcher is None
        self._launcher = RayProcLauncher() if launcher is None else launcher
        self._fields = fields
        self._lock = threading.Lock()
        self._open: set[_CallFuture[Any]] = set()
        self._threads = ThreadPoolExecutor(max_workers or _cpus(), thread_name_prefix="ray_launcher-executor")
        self._closing: threading.Thread | None = None

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """See `concurrent.futures.Executor`; what cannot be pickled is told by the future."""
        future: _CallFuture[_T] = _CallFuture()
        with self._lock:
            self._threads.submit(self._carry_out, future, fn, args, kwargs)
            self._open.add(future)
        future.add_done_callback(self._forget)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor`: calls that run go on to their end; cancel_futures: others never start."""
        with self._lock:
            waiting = [future for future in self._open if not future.running()]
            self._threads.shutdown(wait=False)
            if self._closing is None:
                self._closing = threading.Thread(target=self._close, name="ray_launcher-executor-end")
                self._closing.start()
        if cancel_futures:
            for future in waiting:
                future.cancel()
        if wait:
            self._closing.join()

    def _close(self) -> None:
        self._threads.shutdown(wait=True)
        if self._owns:
            self._launcher.close(0)

    def _carry_out(
        self, future: _CallFuture[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        try:
            call = future.begin(lambda: self._launcher.call_with(fn, args, kwargs, **self._fields))
            if call is None:
                return
            call.exit_port.wait()  # also where it was cancelled: its place is free when it has gone
            if future.cancelled():
                return
            value = call.result()
        except BaseException as error:  # noqa: BLE001  # it is told where it is asked for
            future.finish(partial(future.set_exception, error))
        else:
            future.finish(partial(future.set_result, value))

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._open.discard(future)


class _CallFuture(Future[_T]):
    """Of one call. For the base class it is pending until it ends: so it can be cancelled while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self._call_lock = threading.RLock()  # a callback of the user's may cancel again
        self._call: Call | None = None
        self._over = False

    def running(self) -> bool:
        return self._call is not None and not self.done()

    def cancel(self) -> bool:
        """Kill the call if it runs. False: it has ended."""
        with self._call_lock:
            if self._over:
                return self.cancelled()
            if not super().cancel():
                return False
            self._over = True
            self.set_running_or_notify_cancel()  # for those who wait for several
            if self._call is not None:
                with contextlib.suppress(ProcLauncherError):  # its spawner is gone, and so is the proc
                    self._call.kill()
        return True

    def begin(self, launch: Callable[[], Call]) -> Call | None:
        """Launch it, unless it has been cancelled."""
        with self._call_lock:
            if not self._over:
                self._call = launch()
            return self._call

    def finish(self, tell: Callable[[], None]) -> None:
        """It has ended, unless it was cancelled."""
        with self._call_lock:
            if self._over:
                return
            self._over = True
            self.set_running_or_notify_cancel()
        tell()


def _cpus() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
