"""MPI programs, with MPICH's own process manager, Hydra, and without ssh: this package starts its proxies.

`mpiexec` is told to print what is to be run on each host (`-launcher manual`) and waits for these proxies to connect.
They are a gang here: placed all or nothing, one per node, each with the resources of its ranks; and whatever they start
ends with them. Source: https://github.com/pmodels/mpich/blob/main/doc/wiki/how_to/Using_the_Hydra_Process_Manager.md
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence

import ray

from ray_launcher import (
    Failed,
    LaunchError,
    LaunchOptions,
    Placement,
    ProcExitResult,
    RayProcLauncher,
    Strategy,
    gang_env,
)
from ray_launcher.integrations.output import shown

__all__ = ["run"]

#: One line for each proxy, and the one behind these.
_LAUNCH, _LAUNCH_END = "HYDRA_LAUNCH: ", "HYDRA_LAUNCH_END"
#: Seconds for the proxies to leave when mpiexec has, and the other way round.
_LEAVE = 10.0
#: The same when a proxy has failed.
_CUT_OFF = 1.0


def run(  # noqa: PLR0913  # one argument per choice
    command: Sequence[str | os.PathLike[str]],
    *,
    nnodes: int = 1,
    nproc_per_node: int = 1,
    placement: Placement | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    strategy: Strategy = "SPREAD",
    show: bool = True,
    timeout: float | None = None,
    mpiexec: str = "mpiexec.hydra",
    launcher: RayProcLauncher | None = None,
) -> ProcExitResult:
    """Run an MPI program in `nnodes` x `nproc_per_node` ranks and wait for it; how mpiexec ended, which tells for all.

    command: program and arguments, in the same place on every node.  placement: of each rank.  env: for every rank.
    show: print what the ranks write.  timeout: seconds after which all are killed and TimeoutError is raised.
    mpiexec: MPICH's, which must be on the driver's node, with hydra_pmi_proxy in the same place on every node.
    launcher: the session to use; None: one of its own.

    The nodes must reach the driver's node at Ray's address of it. On several nodes mpiexec (MPICH 5.0.2) does not
    notice a rank that leaves without MPI_Finalize, as by os._exit, while others wait for it: `timeout` bounds that.
    Raises TypeError and ValueError for bad arguments, `LaunchError` when mpiexec does not start the program.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        if launcher is None:
            launcher = stack.enter_context(RayProcLauncher())
        directory = os.getcwd() if cwd is None else os.fspath(cwd)  # noqa: PTH109
        name = f"mpi-{uuid.uuid4().hex[:6]}"
        manager = launcher.launch(f"{name}/mpiexec", _manager(mpiexec, command, nnodes, nproc_per_node, directory))
        stack.callback(launcher.terminate, manager.proc_id, _LEAVE)
        proxies = _proxies(launcher.logs(manager.proc_id, follow=True), nnodes)
        if proxies is None:
            end = manager.exit_port.wait()
            raise LaunchError("\n".join([f"mpiexec {end}, and started nothing", *(end.stderr_tail or [])]))
        plain = Placement() if placement is None else placement
        shared = LaunchOptions(program="env", env=env or {}, cwd=directory, placement=_of_node(plain, nproc_per_node))
        gang = launcher.launch_gang(
            name, lambda rank: dataclasses.replace(shared, args=proxies[rank]), nnodes=nnodes, strategy=strategy
        )
        stack.callback(gang.terminate, _LEAVE)
        for proxy in gang.ranks:  # without it, mpiexec waits for ever
            proxy.exit_port.add_done_callback(
                lambda result: None if result.ok else launcher.terminate(manager.proc_id, _CUT_OFF)
            )
        if show:
            stack.enter_context(shown(launcher, {manager.proc_id: ""}, skip=nnodes + 1))
        try:
            result = manager.exit_port.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except BaseException:  # Ctrl-C, too
            launcher.kill(manager.proc_id)
            gang.kill()
            raise
        proxied = gang.wait(_LEAVE)
        never_started = proxied.cause is not None and isinstance(proxied.results[proxied.cause].kind, Failed)
        return proxied.results[proxied.cause] if proxied.cause is not None and never_started else result


def _manager(
    mpiexec: str, command: Sequence[str | os.PathLike[str]], nnodes: int, nproc: int, directory: str
) -> LaunchOptions:
    here = ray.get_runtime_context().get_node_id()
    address = next(facts["NodeManagerAddress"] for facts in ray.nodes() if facts["NodeID"] == here)  # type: ignore[no-untyped-call]
    hosts = ",".join(f"host{number}" for number in range(nnodes))
    how = ["-launcher", "manual", "-localhost", address, "-hosts", hosts, "-ppn", str(nproc), "-genvnone"]
    args = [*how, "-n", str(nnodes * nproc), *(os.fspath(word) for word in command)]
    return LaunchOptions(program=mpiexec, args=args, cwd=directory, placement=Placement(node_id=here))


def _proxies(output: Iterator[str], nnodes: int) -> list[list[str]] | None:
    """What to run on each host, behind `env`: the ranks of the proxies' gang are not those of the program."""
    unset = [word for variable in gang_env("", 0) for word in ("-u", variable)]
    found = []
    for line in output:
        if line.startswith(_LAUNCH):
            found.append([*unset, *shlex.split(line.removeprefix(_LAUNCH))])
        if line.startswith(_LAUNCH_END):
            return found if len(found) == nnodes else None
    return None


def _of_node(placement: Placement, nproc: int) -> Placement:
    """What a proxy holds for all its ranks."""
    gpus = placement.num_gpus * nproc
    if 0 < placement.num_gpus < 1:  # a share does not span two
        sharers = math.floor(1 / placement.num_gpus)
        gpus = gpus if nproc <= sharers else math.ceil(nproc / sharers)
    return dataclasses.replace(
        placement,
        num_cpus=placement.num_cpus * nproc,
        num_gpus=gpus,
        memory=placement.memory * nproc,
        resources={name: quantity * nproc for name, quantity in placement.resources.items()},
    )
