"""`ContainerSpawner`: runs each proc in a container on a cluster node, through podman or docker."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import uuid
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ray_launcher import (
    Exited,
    ExitReport,
    Failed,
    LaunchOptions,
    Placement,
    ProcExitResult,
    ProcLauncherError,
    ProcSpawner,
    RayProcLauncher,
    Signaled,
)
from ray_launcher.spawners import arguments
from ray_launcher.spawners.ending import Container
from ray_launcher.spawners.engine import Engine, packed, refusal, spec
from ray_launcher.spawners.janitor import start_janitor
from ray_launcher.spawners.shim import SPECIAL

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)
#: Calls that may wait for a node at once.
_THREADS = 32
_MACHINE = os.uname().machine
_NEVER = "asked to end before it was started"


class ContainerSpawner(ProcSpawner):
    """Runs each proc in a fresh container of one image, for `start_spawner` and `ActorProcLauncher`.

    image: its name, as the engine takes it; pulled on each node that has not got it when it is first used there.
    engine: podman or docker, as a name on the nodes' PATH or a path.
    engine_options, run_options: further words for each of the engine's commands, and behind its `run`.
    mounts: "/on/node:/in/container[:ro]", one or several.
    user, network: as the engine's --user and --network take them; None: the engine's own choice.
    gpus: how the GPUs that `Placement.num_gpus` got are handed over: "cdi" (--device nvidia.com/gpu=ID), "engine"
    (--gpus), or None: as its engine does by default. Without num_gpus a container has none.
    limits: bound each by its placement's num_cpus and memory (--cpus, --memory), and by proc_bind.
    pull_timeout: seconds.

    Where several words are taken, one text with spaces does as well. `opts.program` replaces the image's entry point
    and command; it, `cwd` and PATH are looked up inside. The environment is the image's (`inherit_env`, `env_remove`)
    with `opts.env` over it, and is on no command line and in no engine's records. The container ends with its program:
    what else runs in it gets TERM, and KILL 2 s later, and then its exit is told. Signals and core dumps are told as
    they were, and no code of the engine's is taken for the program's. What stands between the program and this actor
    may be killed in any order: the container ends with it.

    The nodes need Linux and this package and its interpreter in the same places as here, and to be machines of the same
    type, x86_64 or aarch64: where a cluster has both, start a spawner on each, with the `label_selector` of
    `actor_options`, and launch on nodes of its type, with that of `Placement`.
    Raises TypeError or ValueError for bad arguments, `ProcLauncherError` on other machines.
    """

    def __init__(  # noqa: PLR0913  # one argument per choice
        self,
        image: str,
        *,
        engine: str = "podman",
        engine_options: str | Iterable[str] = (),
        run_options: str | Iterable[str] = (),
        mounts: str | Iterable[str] = (),
        user: str | int | None = None,
        network: str | None = None,
        gpus: str | None = None,
        limits: bool | str = True,
        pull_timeout: float | str = 600.0,
    ) -> None:
        if arguments.name("image", image).startswith("-"):
            raise ValueError(f"image must be the name of one, such as 'docker.io/library/alpine:3', not {image!r}")
        self._engine = Engine(
            image=image,
            engine=arguments.name("engine", engine),
            engine_options=arguments.words("engine_options", engine_options),
            run_options=arguments.words("run_options", run_options),
            mounts=arguments.words("mounts", mounts),
            user=None if user is None else str(user),
            network=network,
            gpus=arguments.gpus(gpus, engine),
            limits=arguments.flag("limits", limits),
        )
        self._pull_timeout = arguments.seconds("pull_timeout", pull_timeout)
        self._shim = shim_command()
        self._launcher = RayProcLauncher()
        self._janitor = start_janitor(self._engine, self._launcher.session)
        self._threads = ThreadPoolExecutor(_THREADS)
        self._containers: dict[str, Container] = {}
        self._pulls: dict[str, asyncio.Task[str]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def launch(self, proc_id: str, opts: LaunchOptions) -> ExitReport:
        """See `ProcSpawner.launch`."""
        if proc_id in self._containers:
            return _failed(f"proc {proc_id!r} is already running: wait for its exit port, or choose another id")
        refused = refusal(opts)
        if refused:
            return _failed(refused)
        container = self._containers[proc_id] = Container(proc_id, self._launcher, self._in_thread, self._do)
        try:
            return await self._see_through(container, opts)
        except asyncio.CancelledError:
            container.kill()
            raise
        finally:
            del self._containers[proc_id]
            container.over()

    async def terminate(self, proc_id: str, timeout_secs: float) -> None:
        """See `ProcSpawner.terminate`."""
        if proc_id in self._containers:
            self._containers[proc_id].terminate(timeout_secs)

    async def kill(self, proc_id: str) -> None:
        """See `ProcSpawner.kill`."""
        if proc_id in self._containers:
            self._containers[proc_id].kill()

    # -- one launch -----------------------------------------------------------------------------------------------

    async def _see_through(self, container: Container, opts: LaunchOptions) -> ExitReport:
        """Run it, and once more for each node that turns out to have no such image before it is pulled there."""
        pulled: set[str] = set()
        while not container.ending.is_set():
            launch = uuid.uuid4().hex
            try:
                inner = self._inner(launch, opts)
            except ValueError as error:  # too long
                return _failed(f"the environment and arguments cannot be handed over: {error}")
            container.placed = opts.placement == Placement()
            result = await self._launcher.launch(container.proc_id, inner).exit_port
            what, report = await self._meaning(container.proc_id, launch, opts, result)
            if what != "no-image":
                return report
            node = await self._node_of(container.proc_id)
            problem = (
                "the engine does not find it" if node is None or node in pulled else await self._pull(node, container)
            )
            if problem:
                return _failed(
                    f"image {self._engine.image!r} is not to be had on node {node}: {problem}; check its name, or "
                    f"put it there with `{' '.join(self._engine.pull())}`"
                )
            pulled.add(str(node))
        return _failed(_NEVER)

    def _inner(self, launch: str, opts: LaunchOptions) -> LaunchOptions:
        plan = self._engine.plan(self._launcher.session, launch, opts)
        return LaunchOptions(
            program=self._shim[0],
            args=[*self._shim[1:], *packed(plan)],
            want_stdin=True,
            tail_lines=opts.tail_lines if opts.want_stdio else 0,
            log_limit=opts.log_limit,
            secrets={"spec": spec(opts)},
            placement=opts.placement,
        )

    async def _meaning(
        self, proc_id: str, launch: str, opts: LaunchOptions, result: ProcExitResult
    ) -> tuple[str, ExitReport]:
        """What the shim's end says about the container's."""
        tail = result.stderr_tail or ()
        match result.kind:
            case Exited(code) if code == SPECIAL:
                return await self._special(proc_id, opts, tail)
            case Exited(code):
                return "exited", ExitReport(exit_code=code, stderr_tail=tail)
        node = await self._node_of(proc_id)
        if node is not None:  # the shim has not seen to it
            self._janitor.remove.remote(node, launch)
        match result.kind:
            case Signaled(signum):
                return "signaled", ExitReport(signal=signum, stderr_tail=tail)
            case Failed(reason) if self._shim[0] in reason:
                return "failed", _failed(f"{reason}; nodes need this package where the spawner has it, on {_MACHINE}")
            case Failed(reason):
                return "failed", _failed(reason)

    async def _special(self, proc_id: str, opts: LaunchOptions, tail: Iterable[str]) -> tuple[str, ExitReport]:
        try:
            what, number, core, reason = await self._in_thread(self._launcher.value, proc_id)
        except ProcLauncherError as error:
            *_, said = ("", *tail)  # by a shim, perhaps, that could not become what would have told it
            return "failed", _failed(f"how the container ended is lost: {error}{said and f'; last it said: {said}'}")
        if what == "exited":
            return what, ExitReport(exit_code=number, stderr_tail=tuple(tail))
        if what == "signaled":
            return what, ExitReport(signal=number, core_dumped=core, stderr_tail=tuple(tail))
        return what, _failed(_explained(reason, opts, self._engine.image))

    async def _node_of(self, proc_id: str) -> str | None:
        try:
            return (await self._in_thread(self._launcher.info, proc_id)).node_id
        except ProcLauncherError:
            return None

    # -- images ---------------------------------------------------------------------------------------------------

    async def _pull(self, node: str, container: Container) -> str:
        """Fetch the image to a node, once for all who wait for it; returns what went wrong, or ""."""
        pull = self._pulls.get(node)
        if pull is None:
            pull = self._pulls[node] = self._do(self._pull_to(node))
            pull.add_done_callback(lambda _: self._pulls.pop(node))
        ending = self._do(container.ending.wait())
        await asyncio.wait({pull, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        return pull.result() if pull.done() else ""

    async def _pull_to(self, node: str) -> str:
        """As a proc of its own, called "pull-...", whose logs show how far it is."""
        command, proc_id = self._engine.pull(), f"pull-{uuid.uuid4().hex[:8]}"
        opts = LaunchOptions(program=command[0], args=command[1:], placement=Placement(node_id=node), tail_lines=10)
        _logger.info("pulling %s to node %s: see the logs of %s", self._engine.image, node, proc_id)
        port = self._launcher.launch(proc_id, opts).exit_port
        progress = self._in_thread(self._show_progress, proc_id)
        late = False
        if not math.isinf(self._pull_timeout):
            done, _ = await asyncio.wait({asyncio.ensure_future(_result(port))}, timeout=self._pull_timeout)
            late = not done
        if late:
            self._launcher.terminate(proc_id, 2)
        result = await port
        await progress
        if late:
            return f"pulling it took longer than pull_timeout={self._pull_timeout:g} s"
        said = " ".join(result.stderr_tail or ())
        return "" if result.ok else f"pulling it {result}: {said}"

    def _show_progress(self, proc_id: str) -> None:
        try:
            for line in self._launcher.logs(proc_id, "stderr", follow=True):
                _logger.info("%s: %s", proc_id, line)
        except ProcLauncherError:
            pass  # its end tells

    # -- tasks ----------------------------------------------------------------------------------------------------

    def _in_thread(self, call: Callable[..., _T], *args: object) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call, *args)

    def _do(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def shim_command() -> list[str]:
    """Runs a plan on a node, on machines of this type. Raises `ProcLauncherError` on others."""
    shim, init = (Path(__file__).with_name(f"{name}-{_MACHINE}") for name in ("shim", "init"))
    if not os.access(shim, os.X_OK):
        raise ProcLauncherError(f"{shim} cannot be executed: containers need x86_64 or aarch64, and a whole package")
    return [str(shim), str(init)]


async def _result(port: Any) -> ProcExitResult:
    result: ProcExitResult = await port
    return result


def _failed(reason: str) -> ExitReport:
    return ExitReport(failed_reason=reason)


def _explained(reason: str, opts: LaunchOptions, image: str) -> str:
    what, colon, why = reason.partition(": ")
    subjects = {
        "exec": opts.program,
        "chdir": f"LaunchOptions.cwd {opts.cwd!r}",
        "nice": f"LaunchOptions.nice {opts.nice}",
    }
    if reason == "never":
        return _NEVER
    return f"{subjects[what]}: {why} in image {image!r}" if colon and what in subjects else reason
