"""`ray-launcher run --spawner`: procs that a plug-in starts, through an actor that lives as long as the run."""

from __future__ import annotations

import inspect
import queue
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import click
import ray
from click.core import ParameterSource
from ray.exceptions import RayActorError

from ray_launcher import (
    ActorProcLauncher,
    ExitPort,
    LaunchOptions,
    LaunchResult,
    LogChunk,
    ProcExitResult,
    ProcLauncherError,
    ProcSpawner,
    find_spawner,
    start_spawner,
)
from ray_launcher.cli.connect import ConnectError
from ray_launcher.cli.options import together

#: The parameters of `run` for what only sessions do.
_OF_SESSIONS = {
    *("job", "nnodes", "nproc_per_node", "strategy", "no_fail_fast", "max_restarts", "restart_delay"),
    *(
        "detach",
        "session",
        "forget",
        "runtime_env",
        "working_dir",
        "interactive",
        "tty",
        "stdin",
        "log_limit",
        "secret",
    ),
}
#: Seconds for a spawner to tell how its procs have ended, once they have been killed.
_LAST_ANSWERS = 5.0


def _option(value: str) -> tuple[str, str]:
    name, equals, text = value.partition("=")
    if not name.isidentifier() or not equals:
        raise click.BadParameter(f"write NAME=VALUE, not {value!r}")
    return name, text


#: Add them to a command, which gets them as keywords for `plugin_of`.
spawner_options = together(
    click.option(
        "--spawner",
        metavar="NAME",
        help="Have a plug-in start the procs: an installed spawner of that name.",
    ),
    click.option(
        "--spawner-option",
        type=_option,
        multiple=True,
        metavar="NAME=VALUE",
        help="An argument for that spawner, as text; one that is given several times is a list. Repeatable.",
    ),
)


class Plugin(NamedTuple):
    """A spawner to start, with its arguments."""

    spawner_cls: type[ProcSpawner]
    arguments: dict[str, Any]

    def start(self) -> Plugged:
        """On the cluster to which this process is connected. Raises `ConnectError` where it does not start."""
        spawner: Any = start_spawner(self.spawner_cls, **self.arguments)
        try:
            ray.get(spawner.__ray_ready__.remote())
        except RayActorError as error:
            lines = str(error).split("\n")
            words = " ".join(lines[-1:] if error.actor_init_failed else lines).split()  # not its whole traceback
            raise ConnectError(f"cannot start {self.spawner_cls.__name__}: {' '.join(words)}") from None
        return Plugged(spawner)


def plugin_of(ctx: click.Context, options: Mapping[str, Any]) -> Plugin | None:
    """None where none is asked for. Raises `click.UsageError`."""
    name, pairs = options["spawner"], options["spawner_option"]
    if name is None:
        if pairs:
            raise click.UsageError("--spawner-option is for --spawner: say which", ctx)
        return None
    for each in ctx.command.params:
        if each.name in _OF_SESSIONS and ctx.get_parameter_source(each.name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{each.opts[0]} is not for plug-ins: leave it out, or --spawner", ctx)
    arguments: dict[str, Any] = {}
    for key, value in pairs:
        before = arguments.get(key)
        arguments[key] = value if before is None else [*(before if isinstance(before, list) else [before]), value]
    try:
        spawner_cls = find_spawner(name)
    except ProcLauncherError as error:
        raise click.UsageError(f"--spawner: {error}", ctx) from error
    try:
        inspect.signature(spawner_cls).bind(**arguments)
    except TypeError as error:
        raise click.UsageError(f"--spawner-option: {spawner_cls.__name__}: {error}", ctx) from error
    return Plugin(spawner_cls, arguments)


class Plugged(ActorProcLauncher):
    """As much of a session as a run needs. All that is known of what procs write are their last words."""

    def __init__(self, spawner: Any) -> None:
        super().__init__(spawner)
        self._ports: dict[str, ExitPort] = {}

    def launch_many(self, launches: Mapping[str, LaunchOptions]) -> dict[str, LaunchResult]:
        """See `ActorProcLauncher.launch_many`."""
        launched = super().launch_many(launches)
        self._ports = {proc_id: each.exit_port for proc_id, each in launched.items()}
        return launched

    def follow(self, proc_ids: Iterable[str]) -> Iterator[LogChunk]:
        """See `RayProcLauncher.follow`."""
        ends: queue.SimpleQueue[tuple[str, ProcExitResult]] = queue.SimpleQueue()
        wanted = set(proc_ids)
        for proc_id in wanted:
            self._ports[proc_id].add_done_callback(partial(_put, ends, proc_id))
        for _ in wanted:
            proc_id, result = ends.get()
            if tail := result.stderr_tail:
                yield LogChunk(proc_id, "stderr", "".join(f"{line}\n" for line in tail).encode(errors="replace"))

    def close(self, grace: float) -> None:
        """End what runs, and the spawner."""
        deadline = time.monotonic() + grace + _LAST_ANSWERS
        for proc_id in self.active_procs:
            self.terminate(proc_id, grace)
        for port in self._ports.values():
            try:
                port.wait(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                break
        ray.kill(self._spawner)


def _put(ends: queue.SimpleQueue[tuple[str, ProcExitResult]], proc_id: str, result: ProcExitResult) -> None:
    ends.put((proc_id, result))
