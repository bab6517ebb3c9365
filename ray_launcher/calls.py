"""Calls: Python callables as procs, whose answer comes back here: a value, or the exception that was raised."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from ray_launcher.callables import NO_ANSWER, fields_of, pickled_call, raise_here
from ray_launcher.cluster.wire import Location
from ray_launcher.errors import CallError, UnknownProcError
from ray_launcher.exits import Failed, ProcExitResult, Signaled
from ray_launcher.launcher import LaunchResult
from ray_launcher.options import LaunchOptions, check_proc_id, check_timeout
from ray_launcher.port import ExitPort, gone_because
from ray_launcher.view import View

#: Bytes of a pickled call above which Ray's object store carries it.
_LARGE = 64 << 10
#: Lines of stderr that the error for a call without an answer repeats.
_LAST_WORDS = 10
#: Fields of `LaunchOptions` that a call needs for itself.
_OURS = ("args", "arg0", "want_stdin", "want_stdio", "tty", "forget", "max_restarts")


class Call:
    """A callable under way: `exit_port` tells how its proc ended, `ref` and `result` what it returned. Awaitable."""

    def __init__(self, calls: Calls, launched: LaunchResult, data: Sequence[ObjectRef[Any]]) -> None:
        self._calls, self._launched = calls, launched
        self._data = data  # Ray keeps the arguments as long as somebody holds a ref
        self._ref: ObjectRef[Any] | None = None

    @property
    def proc_id(self) -> str:
        """The id of its proc."""
        return self._launched.proc_id

    @property
    def exit_port(self) -> ExitPort:
        """Where the end of its proc arrives."""
        return self._launched.exit_port

    @property
    def ref(self) -> ObjectRef[Any]:
        """An ObjectRef of the answer: `ray.get` gives the value, or raises `CallError`; resolved after the proc's end.

        Made when it is first asked for, which blocks until the proc is on its node. Raises `CallError` for one that
        never comes to one.
        """
        if self._ref is None:
            place = self._calls._place(self.proc_id, wait=True)  # noqa: SLF001  # made by it
            if place.agent is None:
                raise _no_answer(self.exit_port.wait())
            self._ref = place.agent.answer.remote(self.proc_id, place.token, self.exit_port.ref)
        return self._ref

    def result(self, timeout: float | None = None) -> Any:
        """What the callable returned; raises what it raised, with its traceback there as the cause.

        Raises TimeoutError after `timeout` seconds, and the call goes on; `CallError` where there is no answer: its
        proc was killed, has left by os._exit or sys.exit, or is lost; and where it cannot come here.
        """
        end = self.exit_port.wait(None if timeout is None else check_timeout("timeout", timeout))
        if isinstance(end.kind, Failed):
            raise _no_answer(end)
        return self._calls._answer_of(self.proc_id, end)  # noqa: SLF001  # as above

    def kill(self) -> None:
        """Request the end of its proc, with SIGKILL."""
        self._calls.kill(self.proc_id)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        await self.exit_port
        return await asyncio.get_running_loop().run_in_executor(None, self.result)

    def __repr__(self) -> str:
        return f"<Call {self.proc_id!r} {'done' if self.exit_port.done() else 'open'}>"


class Calls(View):
    """The part of `RayProcLauncher` that calls functions."""

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call:
        """Run `fn(*args, **kwargs)` in a fresh interpreter somewhere on the cluster; `call_with` has more choices.

        As `LaunchOptions.from_callable`, but of any size: what is large goes through Ray's object store. Raises
        TypeError for what is not callable or cannot be pickled, `LaunchError` when the launcher is closed.
        """
        return self.call_with(fn, args, kwargs)

    def call_with(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        proc_id: str | None = None,
        **fields: Any,
    ) -> Call:
        """`call` with a proc_id of one's own, and fields of `LaunchOptions`: placement, env, cwd, time_limit and so on.

        The interpreter is the driver's, by its path; `program="python"` finds one on the node's own PATH.
        """
        ours = [name for name in _OURS if name in fields]
        if ours:
            raise ValueError(
                f"{', '.join(ours)}: a call sets this itself; leave it out, or launch from_callable options"
            )
        self._check_may_launch()
        for each in (*args, *(kwargs or {}).values()):
            if isinstance(each, ObjectRef):
                raise TypeError("an argument is an ObjectRef: pass the value, which goes through Ray's store by itself")
        pickled = pickled_call(fn, tuple(args), dict(kwargs or {}))
        large = len(pickled) > _LARGE
        own = fields_of(None if large else pickled)
        own["env"] = {**fields.pop("env", {}), **own["env"]}
        opts = LaunchOptions(**{**own, **fields})
        name = getattr(fn, "__name__", "call").strip("<>")
        launched = self.launch(f"{name}-{uuid.uuid4().hex[:12]}" if proc_id is None else proc_id, opts)
        data: tuple[ObjectRef[Any], ...] = ()
        if large:
            stored = ray.put(pickled)
            data = stored, self._ask("put_all", launched.proc_id, [stored])
        return Call(self, launched, data)

    def value(self, proc_id: str) -> Any:
        """What the callable of a proc returned (see `LaunchOptions.from_callable`), once it has ended; or raises that.

        Raises `UnknownProcError`, and `CallError` where there is no answer: it is no callable, has not ended by
        itself, was launched without stdio, or is lost with its node.
        """
        return self._answer_of(check_proc_id(proc_id), None)

    def _answer_of(self, proc_id: str, end: ProcExitResult | None) -> Any:
        place = self._place(proc_id, wait=False)
        if place.agent is None:
            raise _no_answer(end, f"the answer of {proc_id!r} is lost with its node {place.node}")
        ref = place.agent.answer.remote(proc_id, place.token)
        try:
            return ray.get(ref)
        except RayTaskError as error:
            if not isinstance(error.cause, CallError):
                raise CallError(f"the answer of {proc_id!r} cannot be read: {error.cause}") from None
            raise_here(error.cause)
            raise _no_answer(end, str(error.cause)) from None
        except RayError as error:
            raise _no_answer(end, f"the answer of {proc_id!r} is lost: {gone_because(error)}") from error

    def _place(self, proc_id: str, *, wait: bool) -> Location:
        place: Location | None = self._answer("locate", proc_id, wait)
        if place is None:
            raise UnknownProcError(f"no proc {proc_id!r} in session {self.session}")
        return place


def _no_answer(end: ProcExitResult | None, why: str = NO_ANSWER) -> CallError:
    if end is not None and why == NO_ANSWER:
        was = "was " if isinstance(end.kind, Signaled) else ""
        perhaps = " (for want of memory, perhaps)" if end.kind == Signaled(signal.SIGKILL) else ""
        tail = (end.stderr_tail or [])[-_LAST_WORDS:]
        why = "\n".join([f"{why}: its proc {was}{end}{perhaps}", *tail])
    error = CallError(why)
    error.result = end
    return error
