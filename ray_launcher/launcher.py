"""The launcher's contract, `ProcLauncher`, and `ActorProcLauncher`, which keeps it over any spawner actor."""

from __future__ import annotations

import dataclasses
import pickle
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime, timezone
from functools import partial
from typing import Any

import cloudpickle
from ray import ObjectRef
from ray.actor import ActorHandle

from ray_launcher.errors import KillError, LaunchError, ProcLauncherError, TerminateError, describe_exception
from ray_launcher.exits import ProcExitResult, StdioHandling
from ray_launcher.mail import Mail
from ray_launcher.options import LaunchOptions, check_proc_id, check_timeout
from ray_launcher.port import ExitPort
from ray_launcher.ranks import Member, Shape


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

    def __init__(self, spawner: ActorHandle[Any], *, _id: str | None = None, _at_once: bool = True) -> None:
        """`spawner` is the handle of a `ProcSpawner` actor: see `start_spawner`."""
        if not isinstance(spawner, ActorHandle):
            raise TypeError(f"spawner must be an actor handle, from start_spawner(...), not {spawner!r}")
        if not hasattr(spawner, "serve_post"):
            raise TypeError("spawner is no ProcSpawner: derive its class from ray_launcher.ProcSpawner")
        self._spawner: Any = spawner
        self._id = _id or uuid.uuid4().hex
        self._mail = Mail(spawner, self._id, at_once=_at_once)
        self._lock = threading.Lock()
        self._open: dict[str, dict[int, ExitPort]] = {}  # launches without a result, by proc_id and message number
        self._finished: set[str] = set()

    @property
    def active_procs(self) -> frozenset[str]:
        """The ids launched here whose port has not resolved. For diagnostics: it lags behind the ports."""
        with self._lock:
            return frozenset(self._open)

    def launch(self, proc_id: str, opts: LaunchOptions) -> LaunchResult:
        """See `ProcLauncher.launch`."""
        proc_id = check_proc_id(proc_id)
        return self._launch(proc_id, opts)

    def launch_many(self, launches: Mapping[str, LaunchOptions]) -> dict[str, LaunchResult]:
        """Launch all of {proc_id: opts}: as `launch` for each, only cheaper.

        Bad input in any of them raises before anything is launched.
        """
        if not isinstance(launches, Mapping):
            raise TypeError(f"launches must be a mapping of proc_id to LaunchOptions, not {type(launches).__name__}")
        checked = [(check_proc_id(proc_id), self._check_options(opts)) for proc_id, opts in launches.items()]
        if not checked:
            return {}
        payloads = [_pickled(each) for each in checked]
        self._check_may_launch()
        proc_ids = [proc_id for proc_id, _ in checked]
        ports = self._send(proc_ids, payloads)
        return {proc_id: LaunchResult(proc_id, port) for proc_id, (_, port) in zip(proc_ids, ports, strict=True)}

    def terminate(self, proc_id: str, timeout: float) -> None:
        """See `ProcLauncher.terminate`."""
        self._request(check_proc_id(proc_id), check_timeout("timeout", timeout), TerminateError)

    def kill(self, proc_id: str) -> None:
        """See `ProcLauncher.kill`."""
        self._request(check_proc_id(proc_id), None, KillError)

    # -- for subclasses -------------------------------------------------------------------------------------------

    def _launch(self, proc_id: str, opts: LaunchOptions, *more: object) -> LaunchResult:
        """`launch`, with more for a spawner that knows what to do with it, see `desk.Message`."""
        payload = _pickled((proc_id, self._check_options(opts), *more))
        self._check_may_launch()
        [(_, port)] = self._send([proc_id], [payload])
        return LaunchResult(proc_id, port)

    def _check_options(self, opts: LaunchOptions) -> LaunchOptions:
        if not isinstance(opts, LaunchOptions):
            raise TypeError(f"opts must be a LaunchOptions, not {type(opts).__name__}")
        return opts

    def _check_open(self) -> None:
        """Raise LaunchError when nothing can be launched any more. A spawner that is gone closes the port instead."""
        if not self._connected():
            raise LaunchError("this process is no longer connected to the launcher's cluster: Ray was shut down")

    def _check_may_launch(self) -> None:
        """As `_check_open`, for those who can do more than launch."""
        self._check_open()

    def _connected(self) -> bool:
        return self._mail.connected

    def _ask(self, method: str, *args: object) -> ObjectRef[Any]:
        """Call a method of a spawner that has more of them; it gets (our id, number) first, for `in_turn`."""
        if not self._connected():
            raise ProcLauncherError("cannot reach the spawner: Ray was shut down in this process")
        try:
            ref: ObjectRef[Any] = getattr(self._spawner, method).remote(self._id, self._mail.count - 1, *args)
        except Exception as error:
            raise ProcLauncherError(f"cannot send the request: {describe_exception(error)}") from error
        return ref

    def _call(self, method: str, proc_id: str, error: type[ProcLauncherError], *args: object) -> None:
        """Call a method of a spawner that has more of them, in order with everything else, unheard."""
        gone = self._why_gone()
        if gone is not None:
            raise error(f"cannot reach the spawner: it is gone ({gone})")
        self._mail.send("call", (method, (proc_id, *args)))

    # -- what is open ---------------------------------------------------------------------------------------------

    def _send(self, proc_ids: list[str], payloads: list[bytes]) -> list[tuple[int, ExitPort]]:
        with self._lock:  # a request from another thread must name the launches that it follows
            sent = self._mail.launch(payloads)
            for proc_id, (number, port) in zip(proc_ids, sent, strict=True):
                self._open.setdefault(proc_id, {})[number] = port
        for proc_id, (number, port) in zip(proc_ids, sent, strict=True):
            port._future().add_done_callback(partial(self._ended, proc_id, number))  # noqa: SLF001  # at once
        return sent

    def _launch_gang(self, shape: Shape, options: Sequence[LaunchOptions]) -> list[tuple[int, LaunchResult]]:
        """Launch every rank; returns the message number of each with its result."""
        self._check_open()
        proc_ids = [f"{shape.gang_id}/{rank}" for rank in range(shape.size)]
        payloads = [
            _pickled((proc_id, opts, Member(shape, rank)))
            for rank, (proc_id, opts) in enumerate(zip(proc_ids, options, strict=True))
        ]
        ports = self._send(proc_ids, payloads)
        return [(number, LaunchResult(proc_id, port)) for proc_id, (number, port) in zip(proc_ids, ports, strict=True)]

    def _end_all(self, launches: Mapping[int, LaunchResult], timeout: float | None) -> None:
        """Terminate these launches, or kill them (None), with one message."""
        numbers = tuple(number for number, launch in launches.items() if not launch.exit_port.done())
        if not numbers:
            return
        gone = self._why_gone()
        if gone is not None:
            raise (KillError if timeout is None else TerminateError)(f"cannot reach the spawner: it is gone ({gone})")
        self._mail.send("request", (launches[numbers[0]].proc_id, numbers, timeout), about=numbers)

    def _request(self, proc_id: str, timeout: float | None, error: type[ProcLauncherError]) -> None:
        with self._lock:
            launches = dict(self._open.get(proc_id, {}))
            if not launches and proc_id in self._finished:
                return
        gone = self._why_gone()
        if gone is not None:
            if launches and all(port.done() for port in launches.values()):
                return  # they have ended, only we have not heard of it
            raise error(f"cannot reach the spawner: it is gone ({gone})")
        self._mail.send("request", (proc_id, tuple(launches) or None, timeout), about=tuple(launches))

    def _why_gone(self) -> str | None:
        return self._mail.gone if self._connected() else "Ray was shut down in this process"

    def _ended(self, proc_id: str, number: int, _result: Future[ProcExitResult]) -> None:
        with self._lock:
            self._finished.add(proc_id)
            del self._open[proc_id][number]
            if not self._open[proc_id]:
                del self._open[proc_id]


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
