"""The launcher's contract, `ProcLauncher`, and `ActorProcLauncher`, which keeps it over any spawner actor."""

from __future__ import annotations

import dataclasses
import pickle
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import datetime, timezone
from functools import partial
from typing import Any

import cloudpickle
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError

from ray_launcher.batch import Batch
from ray_launcher.errors import KillError, LaunchError, ProcLauncherError, TerminateError, describe_exception
from ray_launcher.exits import ProcExitResult, StdioHandling
from ray_launcher.options import LaunchOptions, check_proc_id, check_timeout
from ray_launcher.port import ExitPort, connection, gone_because, run_soon
from ray_launcher.spawner import LaunchKey


@dataclasses.dataclass(frozen=True)
class LaunchResult:
    """What `launch` knows at once.

    pid: None, since the proc may have none, or one on another host.  started_at: when the request was sent (UTC).
    stdio: how output is handled.  exit_port: the single truth about the proc's end.
    """

    proc_id: str
    exit_port: ExitPort
    pid: int | None = None
    started_at: datetime = dataclasses.field(default_factory=lambda: datetime.now(timezone.utc))
    stdio: StdioHandling = StdioHandling.MANAGED_BY_LAUNCHER


class ProcLauncher(ABC):
    """The three verbs. All return at once; what becomes of a proc is told by its exit port alone."""

    @abstractmethod
    def launch(self, proc_id: str, opts: LaunchOptions) -> LaunchResult:
        """Launch a proc under a name of the caller's choice, free again once its port has resolved.

        Raises TypeError or ValueError for bad arguments, `LaunchError` when the launcher is closed. Everything that
        goes wrong later arrives at the exit port, as `Failed`.
        """

    @abstractmethod
    def terminate(self, proc_id: str, timeout: float) -> None:
        """Request SIGTERM for the whole tree, and SIGKILL `timeout` seconds later (0: at once; inf: never).

        Nothing happens for an unknown or finished id. Of several requests the earliest deadline holds. Raises
        TypeError or ValueError for a bad timeout, `TerminateError` when the spawner is known to be gone.
        """

    @abstractmethod
    def kill(self, proc_id: str) -> None:
        """Request SIGKILL for the whole tree. As `terminate`, with `KillError`."""


class ActorProcLauncher(ProcLauncher):
    """Launches procs through a spawner actor. Safe to use from several threads."""

    def __init__(self, spawner: ActorHandle[Any]) -> None:
        """`spawner` is the handle of a `ProcSpawner` actor: see `start_spawner`."""
        if not isinstance(spawner, ActorHandle):
            raise TypeError(f"spawner must be an actor handle, from start_spawner(...), not {spawner!r}")
        self._spawner: Any = spawner
        self._connection = connection()
        self._id = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._sent = 0
        self._open: dict[str, list[LaunchKey]] = {}  # launches without a result, by proc_id
        self._finished: set[str] = set()
        self._gone: str | None = None
        self._watch()

    @property
    def active_procs(self) -> frozenset[str]:
        """The ids launched here whose port has not resolved. For diagnostics: it lags behind the ports."""
        with self._lock:
            return frozenset(self._open)

    def launch(self, proc_id: str, opts: LaunchOptions) -> LaunchResult:
        """See `ProcLauncher.launch`."""
        proc_id = check_proc_id(proc_id)
        payload = _pickled((proc_id, self._check_options(opts)))
        self._check_open()
        with self._lock:
            key = self._register(proc_id)
        port = ExitPort(self._spawner.serve_launch.remote(self._id, key[1], payload))
        port._future().add_done_callback(partial(self._ended, proc_id, key))  # noqa: SLF001  # in Ray's thread, at once
        return LaunchResult(proc_id, port)

    def launch_many(self, launches: Mapping[str, LaunchOptions]) -> dict[str, LaunchResult]:
        """Launch all of {proc_id: opts} with one message; otherwise as `launch`, each with a port of its own.

        Bad input in any of them raises before anything is launched.
        """
        if not isinstance(launches, Mapping):
            raise TypeError(f"launches must be a mapping of proc_id to LaunchOptions, not {type(launches).__name__}")
        checked = [(check_proc_id(proc_id), self._check_options(opts)) for proc_id, opts in launches.items()]
        if not checked:
            return {}
        payload = _pickled(checked)
        self._check_open()
        with self._lock:
            _, number, _ = self._next_key()
            keys = [(self._id, number, index) for index in range(len(checked))]
            for (proc_id, _), key in zip(checked, keys, strict=True):
                self._open.setdefault(proc_id, []).append(key)
        batch = Batch(self._spawner, self._id, number, len(checked))
        for (proc_id, _), key, port in zip(checked, keys, batch.ports, strict=True):
            port._future().add_done_callback(partial(self._ended, proc_id, key))  # noqa: SLF001
        batch.send(payload)
        return {proc_id: LaunchResult(proc_id, port) for (proc_id, _), port in zip(checked, batch.ports, strict=True)}

    def terminate(self, proc_id: str, timeout: float) -> None:
        """See `ProcLauncher.terminate`."""
        self._request(check_proc_id(proc_id), check_timeout("timeout", timeout), TerminateError)

    def kill(self, proc_id: str) -> None:
        """See `ProcLauncher.kill`."""
        self._request(check_proc_id(proc_id), None, KillError)

    # -- for subclasses -------------------------------------------------------------------------------------------

    def _check_options(self, opts: LaunchOptions) -> LaunchOptions:
        if not isinstance(opts, LaunchOptions):
            raise TypeError(f"opts must be a LaunchOptions, not {type(opts).__name__}")
        return opts

    def _check_open(self) -> None:
        """Raise LaunchError when nothing can be launched any more. A spawner that is gone closes the port instead."""
        if not self._connected():
            raise LaunchError("this process is no longer connected to the launcher's cluster: Ray was shut down")

    def _connected(self) -> bool:
        """Checked before everything that is sent: without a connection, Ray would start a cluster of its own."""
        return bool(self._connection) and connection() == self._connection

    def _ask(self, method: str, *args: object) -> ObjectRef[Any]:
        """Call a method of a spawner that has more of them; it gets (our id, number) first, for `in_turn`."""
        with self._lock:
            _, number, _ = self._next_key()
        ref: ObjectRef[Any] = getattr(self._spawner, method).remote(self._id, number, *args)
        return ref

    # -- messages and their order ---------------------------------------------------------------------------------

    def _next_key(self) -> LaunchKey:
        """Under the lock: a number for the next message, which must then be sent."""
        number = self._sent
        self._sent += 1
        return (self._id, number, 0)

    def _register(self, proc_id: str) -> LaunchKey:
        key = self._next_key()
        self._open.setdefault(proc_id, []).append(key)
        return key

    def _request(self, proc_id: str, timeout: float | None, error: type[ProcLauncherError]) -> None:
        with self._lock:
            about = tuple(self._open[proc_id]) if proc_id in self._open else None
            if about is None and proc_id in self._finished:
                return
            if not self._connected():
                self._gone = self._gone or "Ray was shut down in this process"
            if self._gone is not None:
                raise error(f"cannot reach the spawner: it is gone ({self._gone})")
            _, number, _ = self._next_key()
        try:
            self._spawner.serve_request.remote(self._id, number, proc_id, about, timeout)
        except Exception as cause:
            raise error(f"cannot send the request: {describe_exception(cause)}") from cause

    def _ended(self, proc_id: str, key: LaunchKey, result: Future[ProcExitResult]) -> None:
        with self._lock:
            keys = self._open[proc_id]
            keys.remove(key)
            if not keys:
                del self._open[proc_id]
                self._finished.add(proc_id)
        if result.result().stderr_tail is None:
            run_soon(partial(self._skip, key))

    def _skip(self, key: LaunchKey) -> None:
        """Perhaps the launch was cancelled before it arrived; if it did arrive, this says nothing new."""
        if self._gone is None and self._connected():
            self._spawner.serve_skip.remote(self._id, key[1])

    def _watch(self) -> None:
        if self._connected():
            self._spawner.serve_watch.remote().future().add_done_callback(self._watch_ended)

    def _watch_ended(self, outcome: Future[object]) -> None:
        error = outcome.exception()
        if isinstance(error, ActorUnavailableError):
            run_soon(self._watch)
        elif error is not None:
            self._gone = gone_because(error)


def _pickled(value: object) -> bytes:
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # noqa: BLE001  # a subclass of LaunchOptions from __main__, say
        return _cloudpickled(value)


def _cloudpickled(value: object) -> bytes:
    try:
        pickled: bytes = cloudpickle.dumps(value)
    except Exception as error:
        raise LaunchError(f"opts cannot be pickled: {describe_exception(error)}") from error
    return pickled
