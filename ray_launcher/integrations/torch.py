"""Distributed PyTorch: run a script written for torchrun, or a function, on the nodes of a Ray cluster.

Each rank is a proc of a gang (see `RayProcLauncher.launch_gang`), and finds what torchrun sets, so that
`torch.distributed.init_process_group()` works as it is. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from ray_launcher import (
    Gang,
    GangResult,
    LaunchOptions,
    Placement,
    ProcExitResult,
    ProcLauncherError,
    RayProcLauncher,
    Strategy,
)
from ray_launcher.integrations.output import shown

__all__ = ["DistributedError", "RankResult", "Script", "run"]


@dataclasses.dataclass(frozen=True)
class RankResult:
    """How one rank ended. value: what the function returned there; None for a script.  node_ip: Ray's."""

    rank: int
    exit: ProcExitResult
    value: Any = None
    node_ip: str | None = None


class DistributedError(ProcLauncherError):
    """A rank failed. results: of all ranks.  cause: the rank that failed first; its stderr tail ends the message."""

    def __init__(self, text: str, results: Sequence[RankResult], cause: int | None) -> None:
        super().__init__(text)
        self.results, self.cause = list(results), cause


@dataclasses.dataclass(frozen=True)
class Script:
    """A Python file with its arguments, or with `module` the name of a module, as for `python -m`."""

    path: str
    args: Sequence[str] = ()
    module: bool = False


Target: TypeAlias = "Script | str | os.PathLike[str] | Callable[..., Any]"


def run(  # noqa: PLR0913  # one argument per choice
    target: Target,
    *args: Any,
    nnodes: int = 1,
    nproc_per_node: int | Literal["gpu", "cpu"] = 1,
    placement: Placement | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    strategy: Strategy = "SPREAD",
    max_restarts: int = 0,
    restart_delay: float = 10,
    show: bool = True,
    timeout: float | None = None,
    launcher: RayProcLauncher | None = None,
) -> list[RankResult]:
    """Run `target` in `nnodes` x `nproc_per_node` ranks and wait for all of them; their results, by rank.

    target: a script's path (`args` are its arguments), a `Script`, or a function, called as `target(*args)` in every
    rank: it and what it returns are pickled. Scripts must be on the nodes, in the same place, and so must the
    interpreter, which is the one that runs now.
    placement: of each rank; with nproc_per_node="gpu" each holds one GPU, and sees all of its node.
    max_restarts: how often all ranks are started again when one fails; a script reads its last checkpoint then.
    show: print what ranks write, in lines behind "[RANK] ".
    timeout: seconds after which all are killed and TimeoutError is raised.
    launcher: the session to use; None: one of its own.

    As torchrun does, OMP_NUM_THREADS is 1 where it is not set and a node has several ranks. Raises `DistributedError`
    when a rank fails, TypeError and ValueError for bad arguments.
    """
    with contextlib.ExitStack() as stack:
        if launcher is None:
            launcher = stack.enter_context(RayProcLauncher())
        opts = _options(target, args, env or {}, nproc_per_node)
        directory = os.getcwd() if cwd is None else os.fspath(cwd)  # noqa: PTH109
        opts = dataclasses.replace(opts, cwd=directory, placement=placement or Placement())
        gang = launcher.launch_gang(
            f"{_name(target)}-{uuid.uuid4().hex[:6]}",
            opts,
            nnodes=nnodes,
            nproc_per_node=nproc_per_node,
            strategy=strategy,
            max_restarts=max_restarts,
            restart_delay=restart_delay,
        )
        prefixes = {proc.proc_id: f"[{rank}] " for rank, proc in enumerate(gang.ranks)}
        with shown(launcher, prefixes) if show else contextlib.nullcontext():
            try:
                result = gang.wait(timeout)
            except BaseException:  # Ctrl-C, too
                gang.kill()
                raise
        return _results(launcher, gang, result, values=callable(target))


def _options(
    target: Target, args: tuple[Any, ...], env: Mapping[str, str], nproc: int | Literal["gpu", "cpu"]
) -> LaunchOptions:
    threads = {} if nproc == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": "1"}
    env = {**threads, **env}
    if callable(target):
        opts = LaunchOptions.from_callable(target, *args)
        return dataclasses.replace(opts, env={**opts.env, **env})
    script = target if isinstance(target, Script) else Script(os.fspath(target), args)
    how = ["-m"] if script.module else []
    return LaunchOptions(program=sys.executable, args=["-u", *how, script.path, *script.args], env=env)


def _name(target: Target) -> str:
    if callable(target):
        return getattr(target, "__name__", "function").strip("<>")
    return os.path.basename(target.path if isinstance(target, Script) else os.fspath(target))  # noqa: PTH119


def _results(launcher: RayProcLauncher, gang: Gang, result: GangResult, *, values: bool) -> list[RankResult]:
    nodes = {info.proc_id: info.node_ip for info in launcher.procs() if info.gang_id == gang.gang_id}
    ends = zip(gang.ranks, result.results, strict=True)
    results = [
        RankResult(rank, end, launcher.value(proc.proc_id) if values and end.ok else None, nodes.get(proc.proc_id))
        for rank, (proc, end) in enumerate(ends)
    ]
    if not result.ok:
        tail = [] if result.cause is None else result.results[result.cause].stderr_tail or []
        raise DistributedError("\n".join([str(result), *tail]), results, result.cause)
    return results
