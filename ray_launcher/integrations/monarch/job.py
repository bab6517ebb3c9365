"""`RayJob`: Monarch hosts on the nodes of a Ray cluster, as a Monarch job beside its Slurm and Kubernetes ones.

Each mesh is a gang of workers, one per host, in a detached session, so that another driver finds them again. A worker
chooses a port, says in its first line of output where it listens, and then serves Monarch's hosts there. Needs release
0.7.0 of Monarch.
"""

from __future__ import annotations

import os
import socket
import sys
import uuid
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from monarch.actor import attach_to_workers, enable_transport
from monarch.job import JobState, JobTrait

from ray_launcher import (
    LaunchOptions,
    LaunchResult,
    Placement,
    ProcExitResult,
    ProcLauncherError,
    RayProcLauncher,
    Strategy,
    UnknownSessionError,
)

#: Its own address is the one that it has on the way to rank 0, which gets Ray's. The socket keeps the port from others
#: until Monarch listens there, which it may: both reuse the address, and this one never listens.
_WORKER = """
import os, socket
from monarch.actor import run_worker_loop_forever
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
    way.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
    here = way.getsockname()[0]
kept = socket.socket()
kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
kept.bind((here, 0))
address = f"tcp://{here}:{kept.getsockname()[1]}"
print(address, flush=True)
run_worker_loop_forever(address=address, ca="trust_all_connections")
"""
#: Seconds for a cluster to answer.
_REACH = 10.0
_TRUST = "trust_all_connections"


class RayJob(JobTrait):
    """Monarch hosts on a Ray cluster: `RayJob({"trainers": 4, "dataloaders": 1}).state().trainers` is a host mesh.

    meshes: hosts by name of the mesh.  placement: what each host holds, for all meshes or by name of the mesh; its
    GPUs are what its procs see. Each mesh gets its places all at once, or waits; `Placement.timeout` bounds that.
    strategy: how hosts of a mesh are put on Ray's nodes; one per node by default, "SPREAD" allows more.
    env, cwd: of the workers; they start from their node's environment, and in the directory that this process is in
    (or that of `runtime_env`), which must be there.  python: the interpreter, with Monarch, in the same place on every
    node; None: the one that runs now.
    session: a detached session to run in, found or made, which outlives the job: the nodes where it has run are faster
    to start on. None: one of the job's own.  detached: False lets the job end with this process, however that ends;
    else it lives until `kill`, and is found again through Monarch's cached job by other drivers of the cluster.
    address, runtime_env: as for `RayProcLauncher`, of a session of the job's own.
    transport: Monarch's, for this process, if it has been chosen already; None: TCP at Ray's address of this node, so
    that workers reach it.  grace: seconds that workers get between TERM and KILL when the job ends.

    `state` blocks until all workers are there, and raises RuntimeError, with the last lines of the first that failed,
    when they cannot be; then the job is ended. A host that is lost is told by Monarch's supervision, and by its exit
    port, see `workers`; the others go on. `kill` returns when nothing is left, and raises ConnectionError where the
    cluster cannot be reached. As with Monarch's other jobs, workers trust whoever connects to them. TypeError and
    ValueError are raised here for bad arguments.
    """

    def __init__(  # noqa: PLR0913  # one argument per choice
        self,
        meshes: Mapping[str, int],
        *,
        placement: Placement | Mapping[str, Placement] | None = None,
        strategy: Strategy = "STRICT_SPREAD",
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        python: str | None = None,
        session: str | None = None,
        detached: bool = True,
        address: str | None = None,
        runtime_env: dict[str, Any] | None = None,
        transport: str | None = None,
        grace: float = 5.0,
    ) -> None:
        super().__init__()
        self._meshes = _meshes(meshes)
        if session is not None and not detached:
            raise ValueError("detached=False is for a session of the job's own: leave out session")
        here = None if "working_dir" in (runtime_env or {}) else os.getcwd()  # noqa: PTH109
        options = LaunchOptions(
            program=sys.executable if python is None else python,
            args=["-c", _WORKER],
            env=env or {},
            cwd=here if cwd is None else cwd,
        )
        self._options = {
            mesh: replace(options, placement=where) for mesh, where in _placements(self._meshes, placement).items()
        }
        self._strategy, self._detached, self._runtime_env = strategy, detached, runtime_env
        self._asked_session, self._transport, self._grace = session, transport, grace
        self._address = address  # of the cluster; once it is known, for other drivers as well
        self._session = ""
        self._name = ""
        self._workers: dict[str, list[str]] = {}  # where they listen, by mesh
        self._launcher: RayProcLauncher | None = None  # of this process

    @property
    def session(self) -> str:
        """The session in which its workers run, for `RayProcLauncher.find` and the command line; "" before `apply`."""
        return self._session

    def workers(self, mesh: str) -> list[LaunchResult]:
        """The workers of a mesh by rank, each with its exit port; see `RayProcLauncher.attach`.

        Raises KeyError for a mesh that it does not have, `ProcLauncherError` for a job that does not run, and
        ConnectionError where its cluster cannot be reached.
        """
        launcher, proc_ids = self._found(), self._proc_ids(mesh)
        return [launcher.attach(proc_id) for proc_id in proc_ids]

    def can_run(self, spec: JobTrait) -> bool:
        """Whether this job is what `spec` asks for, and all its workers are there, or on their way."""
        same = isinstance(spec, RayJob) and spec._asked() == self._asked()  # noqa: SLF001  # of the same class
        return same and self.active and self._lives()

    # -- what Monarch asks of a job -------------------------------------------------------------------------------

    def _create(self, client_script: str | None) -> None:
        if client_script is not None:
            raise RuntimeError("RayJob runs no client script: start it with `ray-launcher run -d -- python SCRIPT`")
        self._name = f"monarch-{uuid.uuid4().hex[:8]}"
        self._session = self._asked_session or self._name
        self._launcher = launcher = RayProcLauncher(
            self._session,
            detached=self._detached,
            address=self._address,
            runtime_env=self._runtime_env,
            grace=self._grace,
        )
        self._address = ray.get_runtime_context().gcs_address
        try:
            self._listen()
            for mesh, hosts in self._meshes.items():
                options = partial(_named, self._options[mesh], mesh)
                gang_id = f"{self._name}/{mesh}"
                launcher.launch_gang(gang_id, options, nnodes=hosts, strategy=self._strategy, fail_fast=False)
        except BaseException:
            self._kill()
            raise

    def _state(self) -> JobState:
        launcher = self._found()
        self._listen()
        if not self._workers:
            try:
                self._workers = {mesh: self._addresses(launcher, mesh) for mesh in self._meshes}
            except BaseException:  # Ctrl-C, too
                self._kill()
                raise
        elif gone := self._gone(launcher):
            raise RuntimeError(f"the job {self._name} has lost hosts: " + ", ".join(map(_end, gone.items())))
        hosts = {
            mesh: attach_to_workers(name=mesh, ca=_TRUST, workers=addresses)
            for mesh, addresses in self._workers.items()
        }
        return JobState(hosts)

    def _kill(self) -> None:
        try:
            launcher = self._found()
            if self._asked_session is not None:
                launcher = RayProcLauncher.find(self._session)  # somebody else may have ended it
        except UnknownSessionError:
            if ray.get_runtime_context().gcs_address == self._address:
                return  # it is gone
            raise
        if self._asked_session is None:
            launcher.end(self._grace)
        else:
            self._end_workers(launcher)
        self._launcher = None
        self._workers = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_launcher": None}

    # -- its parts ------------------------------------------------------------------------------------------------

    def _asked(self) -> tuple[object, ...]:
        choices = self._options, self._strategy, self._detached, self._runtime_env, self._asked_session
        return (self._meshes, *choices)

    def _found(self) -> RayProcLauncher:
        """A launcher of the job's session, in any process. Raises UnknownSessionError, and ConnectionError."""
        if not ray.is_initialized():
            self._launcher = None
            _reach(self._address)
            ray.init(address=self._address, log_to_driver=False)
        if self._launcher is None:
            self._launcher = RayProcLauncher.find(self._session)
        return self._launcher

    def _listen(self) -> None:
        """Have this process serve where workers reach it. Raises RuntimeError where Monarch has been used before."""
        try:
            enable_transport(self._transport or f"tcp://{_address_here()}:0")
        except RuntimeError as error:
            raise RuntimeError(
                f"{error} Make the job's state before anything else of Monarch, or say what transport there is: "
                "RayJob(transport=...), as for enable_transport"
            ) from error

    def _proc_ids(self, mesh: str) -> list[str]:
        return [f"{self._name}/{mesh}/{rank}" for rank in range(self._meshes[mesh])]

    def _addresses(self, launcher: RayProcLauncher, mesh: str) -> list[str]:
        """Where the workers of a mesh listen, once all have said so; each says nothing else before."""
        addresses = []
        for proc_id in self._proc_ids(mesh):
            address = next(launcher.logs(proc_id, follow=True), None)
            if address is None:
                end = launcher.attach(proc_id).exit_port.wait()
                raise RuntimeError("\n".join([f"the worker {proc_id} {end}", *(end.stderr_tail or [])]))
            addresses.append(address)
        return addresses

    def _gone(self, launcher: RayProcLauncher) -> dict[str, ProcExitResult | None]:
        """The workers that have ended, and how, if the session remembers it."""
        known = {info.proc_id: info for info in launcher.procs()}
        workers = [proc_id for mesh in self._meshes for proc_id in self._proc_ids(mesh)]
        return {
            proc_id: known[proc_id].result if proc_id in known else None
            for proc_id in workers
            if proc_id not in known or known[proc_id].state == "EXITED"
        }

    def _lives(self) -> bool:
        try:
            return not self._gone(self._found())
        except (ProcLauncherError, ConnectionError):
            return False

    def _end_workers(self, launcher: RayProcLauncher) -> None:
        known = {info.proc_id for info in launcher.procs()}
        workers = [proc_id for mesh in self._meshes for proc_id in self._proc_ids(mesh) if proc_id in known]
        ports = [launcher.attach(proc_id).exit_port for proc_id in workers]
        for proc_id in workers:
            launcher.terminate(proc_id, self._grace)
        for port in ports:
            port.wait()


def _end(worker: tuple[str, ProcExitResult | None]) -> str:
    proc_id, result = worker
    return f"{proc_id} {'is forgotten' if result is None else result}"


def _named(options: LaunchOptions, mesh: str, rank: int) -> LaunchOptions:
    return replace(options, process_name=f"{mesh}_{rank}")


def _meshes(meshes: object) -> dict[str, int]:
    if not isinstance(meshes, Mapping):
        raise TypeError(f"meshes must be a mapping of names to numbers of hosts, not {type(meshes).__name__}")
    for name, hosts in meshes.items():
        if not isinstance(name, str) or isinstance(hosts, bool) or not isinstance(hosts, int):
            raise TypeError(f"meshes must map names to numbers of hosts, not {name!r} to {hosts!r}")
        if not name.isidentifier():
            raise ValueError(f"meshes has {name!r}, which is no attribute of a state: use letters, digits and '_'")
        if hosts < 1:
            raise ValueError(f"meshes[{name!r}] must be 1 or more hosts, not {hosts}")
    if not meshes:
        raise ValueError("meshes must name at least one")
    return dict(meshes)


def _placements(meshes: Collection[str], given: object) -> dict[str, Placement]:
    if given is None or isinstance(given, Placement):
        return dict.fromkeys(meshes, given or Placement())
    if not isinstance(given, Mapping) or not all(isinstance(each, Placement) for each in given.values()):
        raise TypeError("placement must be a Placement, or a mapping of names of meshes to Placements")
    unknown = sorted(map(repr, given.keys() - set(meshes)))
    if unknown:
        raise ValueError(f"placement has {', '.join(unknown)}, which is no mesh: they are {', '.join(meshes)}")
    return {mesh: given.get(mesh, Placement()) for mesh in meshes}


def _reach(cluster: str | None) -> None:
    """Raise ConnectionError where nobody listens at the address of a cluster: Ray itself would try for minutes."""
    host, _, port = (cluster or "").rpartition(":")
    try:
        socket.create_connection((host, int(port)), _REACH).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(f"the job's Ray cluster at {cluster!r} cannot be reached: {error}") from error


def _address_here() -> str:
    """Ray's, of the node of this process."""
    here = ray.get_runtime_context().get_node_id()
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return next(str(facts["NodeManagerAddress"]) for facts in nodes if facts["NodeID"] == here)
