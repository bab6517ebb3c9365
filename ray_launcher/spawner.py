"""The plug point: `ProcSpawner`, whose three coroutines start and stop procs, and `start_spawner`, which hosts one.

A spawner author writes `launch`, `terminate` and `kill`; everything that a launcher relies on beyond these (order,
exactly one answer, answers that can travel) is provided by the base class's `serve_*` methods, which launchers call.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import pickle
import traceback
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import cloudpickle
import ray
from ray.actor import ActorHandle
from ray.exceptions import TaskCancelledError

from ray_launcher.errors import DecodeError, describe_exception
from ray_launcher.exits import ExitReport, decode_exit
from ray_launcher.turns import Turns

if TYPE_CHECKING:
    from ray_launcher.options import LaunchOptions

_logger = logging.getLogger(__name__)

#: Ray runs 1,000 calls of an async actor at once unless told otherwise; the next launch would wait without a word.
MAX_CONCURRENCY = 1_000_000

#: Task events, one set per launch, would cost more than the launch itself, and tell less than its result.
_ACTOR_OPTIONS = {
    "num_cpus": 0,
    "max_concurrency": MAX_CONCURRENCY,
    "max_restarts": 0,
    "enable_task_events": False,
}

#: A launch's own name: the launcher's id, the number of the message, and the place in a batch (0 for a single one).
LaunchKey = tuple[str, int, int]


#: What an outcome of a batch starts with: a pickled report follows, or a pickled exception.
REPORTED, RAISED = b"r", b"e"


class SpawnerRaisedError(Exception):
    """Stands in for an exception of a spawner that cannot be pickled; carries its text."""


class JunkReportError(DecodeError):
    """Stands in for a spawner's return value that cannot be pickled."""


class ProcSpawner(ABC):
    """Starts and stops procs somewhere. Subclasses run as a Ray actor and need not call `super().__init__()`.

    All three coroutines run on one event loop, so a subclass needs no locks but must not block. `launch` has begun
    before a `terminate` or `kill` that was sent after it is called, for every launcher.
    """

    @abstractmethod
    async def launch(self, proc_id: str, opts: LaunchOptions) -> ExitReport:
        """Start the proc, wait for its end, and report it.

        Whatever is raised becomes a `Failed` result with the exception's text, whatever is returned is decoded
        strictly (see `decode_exit`). Being cancelled means that nobody wants the proc any more.
        """

    @abstractmethod
    async def terminate(self, proc_id: str, timeout_secs: float) -> None:
        """Ask the proc to end, and kill it `timeout_secs` seconds later (inf: never). An unknown id is no error."""

    @abstractmethod
    async def kill(self, proc_id: str) -> None:
        """End the proc now. An unknown id is no error."""

    # -- for launchers --------------------------------------------------------------------------------------------

    async def serve_launch(self, launcher: str, number: int, payload: bytes) -> object:
        """Message `number` of `launcher`: launch what `payload`, a pickled (proc_id, opts), says; the raw report."""
        desk = _desk(self)
        await desk.turns.wait(launcher, number)
        # Wakes the next message's coroutine only after this step, in which the spawner's own launch begins.
        desk.turns.done(launcher, number)
        proc_id, opts = pickle.loads(payload)  # noqa: S301  # from a launcher of the same Ray cluster
        return await desk.launch(self, proc_id, opts, (launcher, number, 0))

    async def serve_batch(self, launcher: str, number: int, payload: bytes) -> AsyncIterator[list[tuple[int, bytes]]]:
        """Launch a pickled list of (proc_id, opts); yields [(index, outcome), ...] as procs end.

        An outcome is `REPORTED` or `RAISED` and a pickle of what was; it is kept for `serve_attach` until
        `serve_release`.
        """
        desk = _desk(self)
        await desk.turns.wait(launcher, number)
        finished: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        try:
            tasks = desk.begin_batch(self, launcher, number, pickle.loads(payload), finished)  # noqa: S301
            await asyncio.sleep(0)  # the tasks take their first step, in which the spawner's own launches begin
        finally:
            desk.turns.done(launcher, number)
        left = len(tasks)
        while left:
            batch = [await finished.get()]
            while not finished.empty():
                batch.append(finished.get_nowait())
            left -= len(batch)
            yield batch

    async def serve_attach(self, launcher: str, number: int, index: int, outcome: bytes | None) -> object:
        """The raw report of one launch of a batch, or its exception; `outcome` where the launcher has it already."""
        if outcome is None:
            tasks = await asyncio.shield(_desk(self).batch(launcher, number))
            outcome = await asyncio.shield(tasks[index])
        value = pickle.loads(outcome[1:])  # noqa: S301  # made by this class
        if outcome[:1] == REPORTED:
            return value
        raise value

    async def serve_release(self, launcher: str, number: int) -> None:
        """The launcher has every outcome of this batch."""
        _desk(self).batches.pop((launcher, number), None)

    async def serve_request(
        self, launcher: str, number: int, proc_id: str, about: tuple[LaunchKey, ...] | None, timeout: float | None
    ) -> None:
        """Terminate (`timeout` in seconds) or kill (None) a proc, if it still runs for one of the launches `about`."""
        desk = _desk(self)
        await desk.turns.wait(launcher, number)
        desk.turns.done(launcher, number)
        if about is not None and desk.running.get(proc_id) not in about:
            return
        try:
            await (self.kill(proc_id) if timeout is None else self.terminate(proc_id, timeout))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if _is_actor_exit(error):
                await _leave()
            # Nobody waits for the answer, and a SystemExit would end the actor with all its procs.
            _logger.exception("%s raised", "kill" if timeout is None else "terminate")

    async def in_turn(self, launcher: str, number: int) -> None:
        """For a subclass's own messages to itself: returns when every earlier message of `launcher` has begun."""
        turns = _desk(self).turns
        await turns.wait(launcher, number)
        turns.done(launcher, number)

    async def serve_skip(self, launcher: str, number: int) -> None:
        """Message `number` was cancelled on its way and will never come."""
        _desk(self).turns.done(launcher, number)

    async def serve_watch(self) -> None:
        """Never returns: the call fails when the spawner is gone for good, which is how callers learn of it."""
        await asyncio.Event().wait()


class _Desk:
    """What the base class keeps for one spawner; apart from it, so that subclasses may skip our `__init__`."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.running: dict[str, LaunchKey] = {}  # by proc_id: the launch that it runs for
        self.batches: dict[tuple[str, int], asyncio.Future[list[asyncio.Task[bytes]]]] = {}

    async def launch(self, spawner: ProcSpawner, proc_id: str, opts: LaunchOptions, key: LaunchKey) -> object:
        """The report, made fit to travel; raises an exception that is fit to travel."""
        first = self.running.setdefault(proc_id, key) == key
        try:
            return _portable_report(await spawner.launch(proc_id, opts))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # SystemExit would leave the caller waiting for ever
            if _is_actor_exit(error):
                await _leave()
            raise _portable_exception(error) from None
        finally:
            if first:
                del self.running[proc_id]

    def batch(self, launcher: str, number: int) -> asyncio.Future[list[asyncio.Task[bytes]]]:
        """The tasks of a batch, once it has begun: those who ask for one may overtake it."""
        begun = self.batches.get((launcher, number))
        if begun is None:
            begun = self.batches[launcher, number] = asyncio.get_running_loop().create_future()
        return begun

    def begin_batch(
        self,
        spawner: ProcSpawner,
        launcher: str,
        number: int,
        batch: list[tuple[str, LaunchOptions]],
        finished: asyncio.Queue[tuple[int, bytes]],
    ) -> list[asyncio.Task[bytes]]:
        async def run(index: int, proc_id: str, opts: LaunchOptions) -> bytes:
            outcome: bytes
            try:
                report = await self.launch(spawner, proc_id, opts, (launcher, number, index))
                outcome = REPORTED + cloudpickle.dumps(report)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # it is handed on
                outcome = RAISED + cloudpickle.dumps(error)
            finished.put_nowait((index, outcome))
            return outcome

        tasks = [asyncio.create_task(run(index, *item)) for index, item in enumerate(batch)]
        self.batch(launcher, number).set_result(tasks)
        return tasks


def _desk(spawner: ProcSpawner) -> _Desk:
    desk: _Desk = spawner.__dict__.setdefault("_ray_launcher_desk", _Desk())
    return desk


def _portable_report(report: object) -> object:
    if type(report) is ExitReport:
        try:
            decode_exit(report)
        except DecodeError:
            pass  # the launcher decodes it again, and says so
        else:
            return report
    try:
        cloudpickle.dumps(report)
    except Exception as error:  # noqa: BLE001  # pickling runs foreign code
        text = f"the spawner returned a {type(report).__qualname__} that cannot be pickled: {describe_exception(error)}"
        raise JunkReportError(text) from None
    return report


def _portable_exception(error: BaseException) -> Exception:
    """The exception itself if it survives the journey, as not every one does; else a stand-in with its text."""
    if isinstance(error, Exception) and not isinstance(error, TaskCancelledError) and _travels(error):
        return error  # a TaskCancelledError is that of a task of the spawner's, and would be taken for the launch's own
    text = describe_exception(error)
    return SpawnerRaisedError(text if text or isinstance(error, Exception) else repr(error))


def _travels(error: Exception) -> bool:
    """Whether Ray can put it in words, which must be UTF-8 (it would lose the actor otherwise), and pickle it."""
    try:
        str.encode(str(error))
        str.encode("".join(traceback.format_exception(type(error), error, error.__traceback__)))
        pickle.loads(cloudpickle.dumps(error))  # noqa: S301  # just made
    except BaseException:  # noqa: BLE001  # all of it runs foreign code
        return False
    return True


def _is_actor_exit(error: BaseException) -> bool:
    return type(error).__name__ == "AsyncioActorExit" and type(error).__module__.startswith("ray.")


async def _leave() -> None:
    """End the actor now: by itself, Ray would first wait for all pending calls, which may never end."""
    ray.kill(ray.get_runtime_context().current_actor)
    await asyncio.Event().wait()


def start_spawner(
    spawner_cls: type[ProcSpawner], /, *args: Any, actor_options: dict[str, Any] | None = None, **kwargs: Any
) -> ActorHandle[Any]:
    """Put a spawner on the cluster and return its actor's handle, for `ActorProcLauncher`.

    The actor costs no CPU (`num_cpus=0`), serves any number of procs at once, and is neither restarted nor retried:
    pass `actor_options={"max_restarts": ..., "max_task_retries": ...}` for a spawner that recovers what it ran.
    `args` and `kwargs` go to the class. Raises TypeError for anything but a concrete `ProcSpawner` subclass.
    """
    given: object = spawner_cls
    if not (isinstance(given, type) and issubclass(given, ProcSpawner)):
        raise TypeError(f"spawner_cls must be a subclass of ray_launcher.ProcSpawner, not {spawner_cls!r}")
    if inspect.isabstract(spawner_cls):
        missing = ", ".join(sorted(spawner_cls.__abstractmethods__))
        raise TypeError(f"spawner_cls {spawner_cls.__qualname__} must define {missing}")
    options = {**_ACTOR_OPTIONS, **(actor_options or {})}
    actor: Any = ray.remote(spawner_cls).options(**options)
    handle: ActorHandle[Any] = actor.remote(*args, **kwargs)
    return handle
