"""A simulated Ray in one event loop: virtual time, actors that die and come back, answers that are late or lost.

A process is all that runs in the context of one `Process`: once that is dead, nothing of it runs ever again, not even
a `finally`, as with SIGKILL. An actor here is restarted and its calls are asked again for ever, as with Ray's
`max_restarts=-1, max_task_retries=-1`; a call may also be asked twice of one process, the answer having been lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import selectors
import warnings
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from functools import partial
from typing import Any

from ray.exceptions import ActorDiedError


class Process:
    """What can be killed."""

    def __init__(self, name: str) -> None:
        self.name, self.alive = name, True
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()


_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def current_name() -> str:
    """Of the process that is running."""
    process = _process.get()
    return "" if process is None else process.name


class _NoWait(selectors.DefaultSelector):
    """Passes time instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen any more")
        self.now += max(0.0, timeout)
        return super().select(0)


class SimLoop(asyncio.SelectorEventLoop):
    """Time passes only when there is nothing else to do. slow: seconds that a blocking call takes."""

    def __init__(self, slow: float = 0.001) -> None:
        self._clock, self._slow = _NoWait(), slow
        super().__init__(self._clock)
        self._made: list[asyncio.Task[Any]] = []
        self.raised: list[dict[str, Any]] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda _, context: self.raised.append(context))

    def time(self) -> float:
        return self._clock.now

    def call_soon(  # type: ignore[override]  # typeshed names the types of the arguments
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        context = contextvars.copy_context() if context is None else context
        return super().call_soon(_guarded(callback, context), *args, context=context)

    def call_at(  # type: ignore[override]  # the same
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        context = contextvars.copy_context() if context is None else context
        return super().call_at(when, _guarded(callback, context), *args, context=context)

    def run_in_executor(  # type: ignore[override]  # the same
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """At once and in this thread; the answer takes a moment."""
        done = self.create_future()
        try:
            answer = func(*args)
        except Exception as error:  # noqa: BLE001  # as an executor does
            done.set_exception(error)
        else:
            self.call_later(self._slow, _set, done, answer)
        return done

    def _make_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        self._made.append(task)
        return task

    def bury(self) -> None:
        """Let go of what dead processes left, without a word; what they begin in a `finally` is let go of, too."""
        asyncio._set_running_loop(self)  # else they would begin it in a loop that nobody runs, nor closes
        try:
            for task in self._made:  # which may grow
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    coroutine: Any = task.get_coro()
                    with warnings.catch_warnings(), contextlib.suppress(BaseException):  # it awaits in a finally, say
                        warnings.simplefilter("ignore")
                        coroutine.close()
        finally:
            asyncio._set_running_loop(None)


def _set(done: asyncio.Future[Any], answer: object) -> None:
    if not done.done():
        done.set_result(answer)


def _guarded(callback: Callable[..., object], context: contextvars.Context) -> Callable[..., object]:
    process = context.get(_process)
    if process is None:
        return callback
    return lambda *args: callback(*args) if process.alive else None


class Ref:
    """An object ref: can be awaited, and has a `future` of its own."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.shield(self._task).__await__()

    def future(self) -> Future[Any]:
        future: Future[Any] = Future()

        def hand_on(task: asyncio.Task[Any]) -> None:
            error = task.exception()
            if error is None:
                future.set_result(task.result())
            else:
                future.set_exception(error)

        context = contextvars.copy_context()  # the caller's: who is dead hears nothing
        self._task.add_done_callback(_guarded(hand_on, context), context=context)
        return future


class Actor:
    """An actor: `make` starts an instance of it, in a process of its own.

    trouble: how likely it is that a call is asked twice.  restart: the most seconds that it takes to come back.
    """

    def __init__(
        self, name: str, make: Callable[[bool], Any], chance: random.Random, *, trouble: float, restart: float = 1.0
    ) -> None:
        self._name, self._make, self._chance = name, make, chance
        self._trouble, self._restart = trouble, restart
        self.process: Process | None = None
        self.instance: Any = None
        self.gone = False
        self.lag = 0.0  # seconds that answers take besides, and are lost when the process dies meanwhile
        self._up = asyncio.Event()
        asyncio.get_running_loop().call_soon(self._start, False)

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return _Method(self, method)

    def sigkill(self) -> None:
        """The process; Ray starts another."""
        if self.process is not None and not self.gone:
            self._end()
            outside(lambda: asyncio.get_running_loop().call_later(self._delay(self._restart), self._start, True))

    def kill(self) -> None:
        """For good."""
        self.gone = True
        self._end()
        self._up.set()

    def _end(self) -> None:
        if self.process is not None:
            self.process.alive = False
            if not self.process.died.done():
                outside(partial(self.process.died.set_result, None))
            self._up.clear()
            self.process = self.instance = None

    def _start(self, again: bool) -> None:
        if self.gone:
            return
        self.process = Process(self._name)
        self.instance = _inside(self.process, lambda: self._make(again))
        self._up.set()

    def _delay(self, most: float) -> float:
        return self._chance.choice([0.0, most * self._chance.random() ** 3])

    def _call(self, method: str, args: tuple[Any, ...]) -> Ref:
        return Ref(outside(lambda: asyncio.ensure_future(self._ask(method, args))))

    async def _ask(self, method: str, args: tuple[Any, ...]) -> Any:
        while True:
            await asyncio.sleep(self._delay(0.02))
            await self._up.wait()
            if self.gone:
                raise ActorDiedError
            process, instance = self.process, self.instance
            if process is None:
                continue  # it has died again
            coroutine: Coroutine[Any, Any, Any] = getattr(instance, method)(*args)
            task: asyncio.Task[Any] = _inside(process, partial(asyncio.ensure_future, coroutine))
            patience = self._delay(0.05) if self._chance.random() < self._trouble else None
            await asyncio.wait((task, process.died), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() or patience is not None:
                continue  # it has died, or the connection broke: Ray asks again
            if self.lag and (await asyncio.wait([process.died], timeout=self.lag))[0]:
                continue
            await asyncio.sleep(self._delay(0.02))
            return task.result()


class _Method:
    def __init__(self, actor: Actor, method: str) -> None:
        self._actor, self._method = actor, method

    def remote(self, *args: Any) -> Ref:
        return self._actor._call(self._method, args)


def _inside(process: Process, call: Callable[[], Any]) -> Any:
    context = contextvars.copy_context()
    context.run(_process.set, process)
    return context.run(call)


def outside(call: Callable[[], Any]) -> Any:
    """Run as nobody's: what goes on whoever dies."""
    context = contextvars.copy_context()
    context.run(_process.set, None)
    return context.run(call)
