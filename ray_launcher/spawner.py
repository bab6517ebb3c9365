"""The plug point: `ProcSpawner`, whose three coroutines start and stop procs, and `start_spawner`, which hosts one.

A spawner author writes `launch`, `terminate` and `kill`; everything that a launcher relies on beyond these (order,
exactly one answer, answers that can travel) is provided by the base class's `serve_*` methods, which launchers call.
"""

from __future__ import annotations

import inspect
import pickle
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle

from ray_launcher.desk import Desk, LaunchKey, Message
from ray_launcher.exits import ExitReport
from ray_launcher.outcomes import report_of

if TYPE_CHECKING:
    from ray_launcher.options import LaunchOptions
    from ray_launcher.ranks import Member

#: Ray runs 1,000 calls of an async actor at once unless told otherwise; the next would wait without a word.
MAX_CONCURRENCY = 1_000_000

#: Task events, one set per call, would cost more than a launch itself, and tell less than its result.
_ACTOR_OPTIONS = {
    "num_cpus": 0,
    "max_concurrency": MAX_CONCURRENCY,
    "max_restarts": 0,
    "enable_task_events": False,
}


class ProcSpawner(ABC):
    """Starts and stops procs somewhere. Subclasses run as a Ray actor and need not call `super().__init__()`.

    All three coroutines run on one event loop, so a subclass needs no locks but must not block. `launch` has begun
    before a `terminate` or `kill` that was sent after it is called, for every launcher.

    A spawner that Ray restarts (see `start_spawner`) is asked to launch again whatever had no end: one that finds the
    proc still there goes on waiting for it instead.
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

    async def serve_post(self, launcher: str, incarnation: str, post: bytes) -> str:
        """Take on a pickled `Post`, unless it is meant for an earlier incarnation; the answer is which this is."""
        desk = desk_of(self)
        if incarnation == desk.incarnation:
            desk.take(launcher, pickle.loads(post))  # noqa: S301  # from a launcher of the same Ray cluster
        return desk.incarnation

    async def serve_poll(
        self, launcher: str, incarnation: str | None, received: int, settled: list[int]
    ) -> tuple[str, list[tuple[int, int, bytes]]]:
        """Wait for outcomes behind sequence number `received`: (incarnation, [(sequence, launch, outcome), ...]).

        settled: launches whose outcomes the launcher has. For another incarnation the answer comes at once, and empty.
        The call fails when the spawner is gone for good, which is how launchers learn of it.
        """
        desk = desk_of(self)
        if incarnation != desk.incarnation:
            return desk.incarnation, []
        desk.settle(launcher, settled)
        return desk.incarnation, await desk.account(launcher).news(received)

    async def serve_hush(self, launcher: str) -> None:
        """Answer the pending poll, and later ones at once: Ray would report one as failed when this actor is killed."""
        desk_of(self).account(launcher).hush()

    async def serve_attach(self, launcher: str, number: int, outcome: bytes | None) -> object:
        """The raw report of a launch, or its exception; `outcome` where the launcher has it already."""
        if outcome is None:
            outcome = await desk_of(self).account(launcher).outcome(number)
        return report_of(outcome)

    async def in_turn(self, launcher: str, number: int) -> None:
        """For a subclass's own calls: returns when every message of `launcher` up to `number` has begun."""
        if number >= 0:  # who has sent nothing leaves nothing here
            await desk_of(self).account(launcher).turn_of(number)

    # -- for subclasses that survive a restart --------------------------------------------------------------------

    async def launch_as(
        self,
        key: LaunchKey,  # noqa: ARG002  # for subclasses
        proc_id: str,
        opts: LaunchOptions,
        message: Message,  # noqa: ARG002  # the same
        member: Member | None = None,  # noqa: ARG002  # the same
    ) -> ExitReport:
        """`launch`, with the launch's own name, which is the same when it is asked for again."""
        return await self.launch(proc_id, opts)

    async def end_as(self, keys: list[LaunchKey], timeout_secs: float | None) -> bool:  # noqa: ARG002  # the same
        """`terminate`, or `kill` if there is no timeout, of launches by their own names; False: not known by them."""
        return False

    def on_settled(self, launcher: str, numbers: list[int]) -> None:  # noqa: B027  # no duty
        """The launcher has the outcomes of these launches."""

    def on_resync(self, launcher: str, numbers: set[int]) -> None:  # noqa: B027  # no duty
        """After a restart: these are all the launches of which the launcher has no outcome."""


def desk_of(spawner: ProcSpawner) -> Desk:
    """What launchers have asked of a spawner."""
    desk: Desk | None = spawner.__dict__.get("_ray_launcher_desk")
    if desk is None:
        desk = spawner.__dict__["_ray_launcher_desk"] = Desk(spawner)
    return desk


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
