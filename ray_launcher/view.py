"""What can be seen of a session, and asked of its procs, whoever launched them."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import ray
from ray import ObjectRef
from ray.exceptions import ActorUnavailableError, RayError

from ray_launcher.changes import Changes, Listener
from ray_launcher.errors import KillError, NotReadyError, ProcLauncherError, UnknownProcError
from ray_launcher.info import ProcEvent, ProcInfo
from ray_launcher.launcher import ActorProcLauncher, LaunchResult
from ray_launcher.logs import LogChunk, LogStreams, Wanted, lines_of
from ray_launcher.options import check_proc_id, check_timeout
from ray_launcher.port import ExitPort, gone_because
from ray_launcher.stdin import Stdin
from ray_launcher.usage import ProcUsage

AnyListener = TypeVar("AnyListener", Changes, Listener)


class View(ActorProcLauncher):
    """The part of `RayProcLauncher` that asks the default spawner."""

    session: str
    _listeners: WeakSet[Changes | Listener]

    def procs(self) -> list[ProcInfo]:
        """Every proc of the session, and the last 1,000 that have ended. Raises `ProcLauncherError`."""
        infos: list[ProcInfo] = self._answer("infos")
        return infos

    def info(self, proc_id: str) -> ProcInfo:
        """One proc of the session. Raises `UnknownProcError` for an id that is not known, or no more."""
        proc_id = check_proc_id(proc_id)
        found = {info.proc_id: info for info in self.procs()}.get(proc_id)
        if found is None:
            raise UnknownProcError(f"no proc {proc_id!r} in session {self.session}")
        return found

    def remove(self, *proc_ids: str) -> list[str]:
        """Forget procs that have ended, with their logs. The answer is those that are left: they run, or are unknown.

        Raises `ProcLauncherError`.
        """
        left: list[str] = self._answer("remove", [check_proc_id(proc_id) for proc_id in proc_ids])
        return left

    def usage(self) -> list[ProcUsage]:
        """What every proc that has not ended uses: CPU time, memory and processes of its tree. Once per call.

        One look per node; those whose node takes more than 3 s to answer come without figures. Two calls and
        `ProcUsage.cpu_percent` tell how busy they are. Raises `ProcLauncherError`.
        """
        used: list[ProcUsage] = self._answer("usage")
        return used

    def events(self, *, past: bool = False, follow: bool = True) -> Iterator[ProcEvent]:
        """Each change of a proc's state, as it comes: PENDING, STARTING, RUNNING, TERMINATING, EXITED.

        past: begin with those of the last 10,000 that are remembered; a spawner that was started again remembers its
        own.  follow: go on until the session ends; False: what there has been. One that was told before a spawner
        died is not told again. Raises `ProcLauncherError` where the session is not to be reached to begin with.
        """
        self._check_open()
        return self._events(self._listens(Changes(partial(self._ask, "events"), past, follow)))

    def wait_until_over(self) -> None:
        """Return when the session is over: ended, or its spawner gone for good. Costs nothing while it goes on.

        Raises `ProcLauncherError` where Ray cannot reach the spawner, which may pass.
        """
        self._check_open()
        try:
            ray.get(self._spawner.serve_watch.remote(uuid.uuid4().hex))
        except ActorUnavailableError as error:
            raise ProcLauncherError(f"cannot reach the spawner: {gone_because(error)}") from None
        except RayError:
            pass  # that is the end

    def on_event(self, fn: Callable[[ProcEvent], object], *, past: bool = False) -> Callable[[], None]:
        """Call `fn(event)` for each change of a proc's state, as `events` tells them; the answer is what stops that.

        The calls are made one after the other, in the thread that serves `ExitPort.add_done_callback`; what they raise
        is logged. They stop with the session, its last changes told, or when this launcher lets go of a detached one.
        Raises TypeError, `ProcLauncherError`.
        """
        if not callable(fn):
            raise TypeError(f"fn must be a function of a ProcEvent, not {type(fn).__name__}")
        self._check_open()
        listener = Listener(Changes(partial(self._ask, "events"), past, follow=True), fn, self._hears)
        return self._listens(listener).stop

    def _events(self, changes: Changes) -> Iterator[ProcEvent]:
        answer = _got(changes.asked)
        while True:
            yield from changes.take(answer)
            if changes.over or not self._hears():
                return
            try:
                answer = _got(changes.ask())
            except ProcLauncherError:
                return  # the session is gone

    def _listens(self, listener: AnyListener) -> AnyListener:
        self._listeners.add(listener)
        return listener

    def _hears(self) -> bool:
        """Whether more events are wanted."""
        return self._connected()

    def attach(self, proc_id: str) -> LaunchResult:
        """A proc of the session with an exit port of its own, whoever launched it; also one that ended lately.

        Raises `UnknownProcError` for an id that is not known, or no more, and `ProcLauncherError`.
        """
        found = self.info(proc_id)
        port = ExitPort(self._ask("await_end", proc_id))
        return LaunchResult(proc_id, port, found.pid, found.started_at or datetime.now(timezone.utc))

    def wait_ready(self, *proc_ids: str, timeout: float | None = None) -> None:
        """Block until each of these procs of the session is ready, as their `LaunchOptions.ready_when` tells.

        Raises TimeoutError after `timeout` seconds, naming those that are not; `NotReadyError` for the first that has
        ended before, for good; `UnknownProcError` and `ProcLauncherError`.
        """
        deadline = None if timeout is None else time.monotonic() + check_timeout("timeout", timeout)
        self._check_open()
        asked = {proc_id: self._ask("await_ready", check_proc_id(proc_id)) for proc_id in proc_ids}
        for proc_id, ref in asked.items():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not ray.wait([ref], timeout=left)[0]:
                late = [proc_id for proc_id, ref in asked.items() if not ray.wait([ref], timeout=0)[0]]
                raise TimeoutError(f"not ready after {timeout:g} s: {', '.join(map(repr, late))}")
            end = _got(ref)
            if end is None:
                raise UnknownProcError(f"no proc {proc_id!r} in session {self.session}")
            if end:
                raise NotReadyError(f"proc {proc_id!r} {end}, and was not ready")

    def signal(self, proc_id: str, signum: int) -> None:
        """Request signal `signum` (1 to 64) for every process of a proc; nothing for one that does not run.

        Raises TypeError or ValueError, `KillError` when the spawner is gone.
        """
        proc_id, signum = check_proc_id(proc_id), _check_signal(signum)
        self._call("signal", proc_id, KillError, signum)

    def logs(  # one argument per choice
        self,
        proc_id: str,
        stream: str = "stdout",
        follow: bool = False,
        tail: int | None = None,
        *,
        since: datetime | timedelta | None = None,
        timestamps: bool = False,
    ) -> Iterator[str]:
        """The lines that a proc has written to `stream` ("stdout" or "stderr"), without their newlines.

        follow: go on until the proc has ended.  tail: start with the last so many lines.  since: leave out what is
        older: a time with its zone, or how long ago.  timestamps: each line behind the time when it was written, good
        to a second, as in 2026-11-25T20:17:20.123Z; ISO 8601, UTC, by the clock of its node. Raises `UnknownProcError`
        for an id that was never launched, or so long ago that it is forgotten; TypeError and ValueError;
        `ProcLauncherError` when the spawner is gone. The iterator raises `LogsLostError` at its end where the node of
        the proc is lost, and with it what has not been read.
        """
        proc_id = check_proc_id(proc_id)
        wanted = _wanted((stream,), follow, tail, since, timestamps)
        self._check_open()
        location = self._ask("locate", proc_id, follow)
        if not follow:
            self._check_known(proc_id, location)
        elif proc_id not in self._open:  # it may wait for a node for long
            self._check_known(proc_id, self._ask("locate", proc_id, False))
        return lines_of(self._streams({proc_id: location}, wanted), None if follow else tail)

    def stdin(self, proc_id: str) -> Stdin:
        """The way into a proc that was launched with `want_stdin` or `tty`, whoever did; of its attempt that runs.

        Raises nothing but TypeError, ValueError or `ProcLauncherError`; the rest is told by the methods of `Stdin`.
        """
        proc_id = check_proc_id(proc_id)
        self._check_open()
        return Stdin(proc_id, self.session, self._ask("locate", proc_id, True), self._connected)

    def output(  # one argument per choice
        self,
        proc_ids: Iterable[str],
        streams: Sequence[str] = ("stdout", "stderr"),
        *,
        follow: bool = False,
        tail: int | None = None,
        since: datetime | timedelta | None = None,
        timestamps: bool = False,
    ) -> Iterator[LogChunk]:
        """What procs have written to these streams, as bytes, each stream in its order; unknown procs: nothing.

        The arguments are those of `logs`; `tail` counts for each stream. One thread and a few calls per node serve any
        number of procs. What cannot be read of one is told in a chunk of its own, see `LogChunk`.
        """
        wanted = _wanted(tuple(streams), follow, tail, since, timestamps)
        self._check_open()
        locations = {proc_id: self._ask("locate", check_proc_id(proc_id), follow) for proc_id in proc_ids}
        return iter(self._streams(locations, wanted))

    def follow(self, proc_ids: Iterable[str], *, tail: int | None = None) -> Iterator[LogChunk]:
        """What procs write to both streams, as it comes, until all have ended and all is read: see `output`."""
        return self.output(proc_ids, follow=True, tail=tail)

    def _streams(self, locations: dict[str, ObjectRef[Any]], wanted: Wanted) -> LogStreams:
        def again(proc_id: str, attempt: int, silent: bool) -> ObjectRef[Any]:
            return self._ask("locate", proc_id, wanted.follow, attempt, silent)

        return LogStreams(self.session, locations, again, self._connected, wanted)

    def _answer(self, method: str, *args: object) -> Any:
        self._check_open()
        return _got(self._ask(method, *args))

    def _check_known(self, proc_id: str, location: ObjectRef[Any]) -> None:
        if _got(location) is None:
            raise UnknownProcError(f"no proc {proc_id!r} in session {self.session}")


def _got(ref: ObjectRef[Any]) -> Any:
    try:
        return ray.get(ref)
    except RayError as error:
        raise ProcLauncherError(f"cannot reach the spawner: it is gone ({gone_because(error)})") from None


def _check_signal(signum: object) -> int:
    if isinstance(signum, bool) or not isinstance(signum, int):
        raise TypeError(f"signum must be a signal number such as signal.SIGUSR1, not {type(signum).__name__}")
    if signum not in signal.valid_signals():
        raise ValueError(f"signum must be a signal of this system (see signal.valid_signals()), not {signum}")
    return int(signum)


def _wanted(
    streams: tuple[str, ...], follow: bool, tail: object, since: datetime | timedelta | None, timestamps: bool
) -> Wanted:
    for stream in streams:
        if stream not in ("stdout", "stderr"):
            raise ValueError(f'stream must be "stdout" or "stderr", not {stream!r}')
    if tail is not None and (isinstance(tail, bool) or not isinstance(tail, int) or tail < 0):
        raise ValueError(f"tail must be None or a number of lines >= 0, not {tail!r}")
    return Wanted(streams, follow, tail, _when(since), timestamps)


def _when(since: object) -> float | None:
    """By `time.time`."""
    if since is None:
        return None
    if isinstance(since, timedelta):
        return time.time() - since.total_seconds()
    if not isinstance(since, datetime):
        raise TypeError(f"since must be a datetime, a timedelta or None, not {type(since).__name__}")
    if since.tzinfo is None:
        raise ValueError("since must have a time zone: write datetime.now(timezone.utc), or since.astimezone()")
    return since.timestamp()
