"""`MonarchProcLauncher`: an actor of Monarch's that launches procs on a Ray cluster, for Monarch's own plug point.

Monarch's contract is `monarch._src.actor.proc_launcher.ProcLauncher`, since release 0.4.0; the translation is all here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from monarch._src.actor.proc_launcher import LaunchOptions as MonarchOptions
from monarch._src.actor.proc_launcher import ProcExitResult as MonarchExit
from monarch._src.actor.proc_launcher import ProcLauncher
from monarch.actor import Port, endpoint

from ray_launcher import (
    Exited,
    ExitPort,
    Failed,
    LaunchOptions,
    Placement,
    ProcBind,
    ProcLauncherError,
    RayProcLauncher,
    Signaled,
)

_logger = logging.getLogger(__name__)

#: What `params` may have for the session; all of `RayProcLauncher`.
_SESSION = ("session", "detached", "address", "runtime_env", "grace", "lease", "history")
#: The fields of Monarch 0.7.0.
_FIELDS = {
    *("bootstrap_payload", "process_name", "program", "arg0", "args", "env", "want_stdio", "tail_lines"),
    *("log_channel", "proc_bind", "inherit_env", "env_remove"),
}
_BINDINGS = {each.name for each in dataclasses.fields(ProcBind)}
#: Opens the whole cluster; procs do not inherit it from whoever launches them either.
_TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105  # its name
#: Seconds between TERM and KILL when the actor is stopped.
_GRACE = 5.0


class MonarchProcLauncher(ProcLauncher):
    """Launches procs on the nodes of a Ray cluster. An actor: `mesh.spawn("launcher", MonarchProcLauncher, params)`.

    params: a dict or None, with any of `session`, `detached`, `address`, `runtime_env`, `grace`, `lease`, `history`,
    which are `RayProcLauncher`'s, and `placement`, a `Placement` or a dict of its fields, for every proc. The process
    of the actor is the session's driver: what is not detached ends with it.

    `launch` answers at its port exactly once: with Monarch's `ProcExitResult` once the proc has ended, or, where it
    could not be asked for, with the exception. Whatever is lost on the way is a result with `failed_reason`.
    `terminate` and `kill` do nothing for what is unknown or has ended, and never raise: Monarch sends them without
    waiting for an answer, and an error would end the actor. What goes wrong with them is logged.

    As Monarch's contract has it, procs inherit the environment of the actor's process, whatever node they run on;
    without what Ray has added there, and without its token. `env_remove` holds names. `arg0` is by default the last
    part of `program`. What a later Monarch may add to its options is left out, with a warning in the log, once.

    Raises TypeError or ValueError for bad params, and what `RayProcLauncher` raises.
    """

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        super().__init__(params)
        settings = _checked(params)
        self._placement = _placement(settings.pop("placement", None))
        before = set(os.environ)
        self._launcher = RayProcLauncher(**settings)
        self._rays = {*(set(os.environ) - before), _TOKEN}
        self._told: set[str] = set()
        self._answers: set[asyncio.Future[None]] = set()  # to come

    @endpoint(explicit_response_port=True)
    async def launch(self, exit_port: Port[MonarchExit], proc_id: str, opts: MonarchOptions) -> None:
        """See Monarch's `ProcLauncher.launch`."""
        try:
            port = self._launcher.launch(proc_id, self._translated(opts)).exit_port
        except Exception as error:  # noqa: BLE001  # with an explicit port nobody else tells it
            exit_port.exception(error)
            return
        answer = asyncio.ensure_future(_answer(exit_port, port))
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)

    @endpoint
    async def terminate(self, proc_id: str, timeout_secs: float) -> None:
        """See Monarch's `ProcLauncher.terminate`."""
        try:
            self._launcher.terminate(proc_id, timeout_secs)
        except (ProcLauncherError, TypeError, ValueError) as error:
            _logger.warning("terminate(%r): %s", proc_id, error)

    @endpoint
    async def kill(self, proc_id: str) -> None:
        """See Monarch's `ProcLauncher.kill`."""
        try:
            self._launcher.kill(proc_id)
        except (ProcLauncherError, TypeError, ValueError) as error:
            _logger.warning("kill(%r): %s", proc_id, error)

    async def __cleanup__(self, exc: Exception | None) -> None:
        """Called by Monarch when the actor stops: ends the session, unless it is detached, and tells what has ended."""
        await asyncio.to_thread(self._launcher.close, _GRACE)
        if not self._launcher.detached:
            await asyncio.gather(*self._answers)

    def _translated(self, opts: MonarchOptions) -> LaunchOptions:
        self._tell("LaunchOptions.", {each.name for each in dataclasses.fields(opts)} - _FIELDS)
        binding = opts.proc_bind or {}
        self._tell("LaunchOptions.proc_bind: ", binding.keys() - _BINDINGS)
        bound = {name: value for name, value in binding.items() if name in _BINDINGS}
        return LaunchOptions(
            program=opts.program,
            args=opts.args,
            arg0=PurePath(opts.program).name if opts.arg0 is None else opts.arg0,
            env={**self._inherited(opts), **opts.env},
            inherit_env=False,
            want_stdio=opts.want_stdio,
            tail_lines=opts.tail_lines,
            process_name=opts.process_name,
            bootstrap_payload=opts.bootstrap_payload,
            log_channel=opts.log_channel,
            proc_bind=ProcBind(**bound) if bound else None,
            placement=self._placement,
        )

    def _inherited(self, opts: MonarchOptions) -> dict[str, str]:
        if not getattr(opts, "inherit_env", True):  # neither field is there before 0.7.0
            return {}
        left_out = {*self._rays, *getattr(opts, "env_remove", ())}
        return {name: value for name, value in os.environ.items() if name not in left_out}

    def _tell(self, where: str, names: Iterable[str]) -> None:
        for name in sorted({f"{where}{name}" for name in names} - self._told):
            self._told.add(name)
            _logger.warning("Monarch's %s is unknown to this version of ray_launcher, and left out", name)


async def _answer(exit_port: Port[MonarchExit], port: ExitPort) -> None:
    result = await port
    kind = result.kind
    exit_port.send(
        MonarchExit(
            exit_code=kind.code if isinstance(kind, Exited) else None,
            signal=kind.signal if isinstance(kind, Signaled) else None,
            core_dumped=isinstance(kind, Signaled) and kind.core_dumped,
            failed_reason=kind.reason if isinstance(kind, Failed) else None,
            stderr_tail=list(result.stderr_tail or []),
        )
    )


def _checked(params: Mapping[str, Any] | None) -> dict[str, Any]:
    if params is not None and not isinstance(params, Mapping):
        raise TypeError(f"params must be a dict or None, not {type(params).__name__}")
    settings = dict(params or {})
    known = {*_SESSION, "placement"}
    if settings.keys() - known:
        unknown = ", ".join(sorted(map(repr, settings.keys() - known)))
        raise ValueError(f"params has {unknown}, which is none of {', '.join(sorted(known))}")
    return settings


def _placement(given: object) -> Placement:
    if given is None or isinstance(given, Placement):
        return given or Placement()
    if not isinstance(given, Mapping):
        raise TypeError(f"params['placement'] must be a Placement or a dict of its fields, not {type(given).__name__}")
    return Placement(**given)
