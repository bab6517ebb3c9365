"""What a run launches: procs that are nothing to each other, or a gang. `Run` asks the same of both."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import ray

from ray_launcher import ActorProcLauncher, Gang, LaunchOptions, LaunchResult, ProcLauncherError, RayProcLauncher
from ray_launcher.cli.connect import ConnectError
from ray_launcher.cli.gangs import Shape
from ray_launcher.cli.plugged import Plugged, Plugin
from ray_launcher.cli.resources import is_address


class Target(NamedTuple):
    """Where to launch. session: a detached one; None: one that ends with us.  grace: when that happens, in seconds.

    spawner: what starts the procs instead of a session.
    """

    address: str | None
    session: str | None
    grace: float
    runtime_env: dict[str, Any] | None
    spawner: Plugin | None = None

    def open(self) -> RayProcLauncher | Plugged:
        """A launcher there, on the cluster to which this process is connected."""
        return self.session_launcher() if self.spawner is None else self.spawner.start()

    def session_launcher(self) -> RayProcLauncher:
        """The same, of a session."""
        return RayProcLauncher(
            session=self.session,
            detached=self.session is not None,
            grace=self.grace,
            runtime_env=self.runtime_env,
        )


class Job(Protocol):
    """Procs to launch. The number of one among them is its rank."""

    @property
    def name(self) -> str:
        """What its procs' ids begin with."""

    @property
    def fail_fast(self) -> bool:
        """Whether the first failure ends the others."""

    @property
    def restarts(self) -> bool:
        """Whether any is started again when it fails."""

    def settle(self) -> None:
        """Look up on the cluster, to which this process is connected, what is still open. Raises `ConnectError`."""

    def launch(self, launcher: ActorProcLauncher) -> Sequence[LaunchResult]:
        """By rank. Raises `ProcLauncherError`, TypeError and ValueError."""

    def terminate(self, ranks: Collection[int], grace: float) -> None:
        """Request it for those that run. Raises `ProcLauncherError`."""

    def kill(self, ranks: Collection[int]) -> None:
        """Request it for those that run. Raises `ProcLauncherError`."""

    def blame(self) -> tuple[int, str | None] | None:
        """Whose failure came first, once all have ended, and the address of its node. Blocks.

        None where the order in which one hears of failures has to do.
        """


class Several:
    """Procs of which each runs on whatever becomes of the others. launches: by proc_id, in the order of ranks."""

    fail_fast = False

    def __init__(self, name: str, launches: Mapping[str, LaunchOptions]) -> None:
        self.name, self.launches = name, launches
        self.restarts = any(options.max_restarts for options in launches.values())
        self._launcher: ActorProcLauncher | None = None

    def settle(self) -> None:
        """See `Job`."""
        settle = _settler()
        self.launches = {proc_id: settle(options) for proc_id, options in self.launches.items()}

    def launch(self, launcher: ActorProcLauncher) -> Sequence[LaunchResult]:
        """See `Job`."""
        self._launcher = launcher
        launched = launcher.launch_many(self.launches)
        return [launched[proc_id] for proc_id in self.launches]

    def terminate(self, ranks: Collection[int], grace: float) -> None:
        """See `Job`."""
        self._each(ranks, lambda launcher, proc_id: launcher.terminate(proc_id, grace))

    def kill(self, ranks: Collection[int]) -> None:
        """See `Job`."""
        self._each(ranks, lambda launcher, proc_id: launcher.kill(proc_id))

    def blame(self) -> None:
        """See `Job`."""

    def _each(self, ranks: Collection[int], ask: Callable[[ActorProcLauncher, str], object]) -> None:
        if self._launcher is not None:
            ids = list(self.launches)
            for rank in sorted(ranks):
                ask(self._launcher, ids[rank])


class AGang:
    """A gang of this name and shape. options: of every rank.  grace: seconds from TERM to KILL when one fails."""

    def __init__(self, name: str, shape: Shape, options: LaunchOptions, grace: float) -> None:
        self.name, self.shape, self.options = name, shape, options
        self.fail_fast, self.restarts = shape.fail_fast, shape.max_restarts > 0
        self._grace = grace
        self._launched: tuple[RayProcLauncher, Gang] | None = None

    def settle(self) -> None:
        """See `Job`."""
        self.options = _settler()(self.options)

    def launch(self, launcher: ActorProcLauncher) -> Sequence[LaunchResult]:
        """See `Job`."""
        assert isinstance(launcher, RayProcLauncher)  # noqa: S101  # no plug-in starts gangs
        gang = launcher.launch_gang(
            self.name,
            self.options,
            nnodes=self.shape.nnodes if self.shape.min_nodes is None else (self.shape.min_nodes, self.shape.nnodes),
            nproc_per_node=self.shape.nproc,
            strategy=self.shape.strategy,
            fail_fast=self.shape.fail_fast,
            grace=self._grace,
            max_restarts=self.shape.max_restarts,
            restart_delay=self.shape.restart_delay,
        )
        self._launched = launcher, gang
        return gang.ranks

    def terminate(self, ranks: Collection[int], grace: float) -> None:  # noqa: ARG002  # all that run
        """See `Job`."""
        if self._launched is not None:
            self._launched[1].terminate(grace)

    def kill(self, ranks: Collection[int]) -> None:  # noqa: ARG002  # all that run
        """See `Job`."""
        if self._launched is not None:
            self._launched[1].kill()

    def blame(self) -> tuple[int, str | None] | None:
        """See `Job`."""
        if self._launched is None:
            return None
        launcher, gang = self._launched
        cause = gang.wait(0).cause
        if cause is None:
            return None
        address = None
        with contextlib.suppress(ProcLauncherError):  # the spawner is gone
            address = next((info.node_ip for info in launcher.procs() if info.rank == cause), None)
        return cause, address


def _settler() -> Callable[[LaunchOptions], LaunchOptions]:
    """Puts the ids of nodes in place of their addresses, each looked up once."""
    known: dict[str, str] = {}

    def settle(options: LaunchOptions) -> LaunchOptions:
        node = options.placement.node_id
        if node is None or not is_address(node):
            return options
        if node not in known:
            known[node] = _id_of(node)
        placement = dataclasses.replace(options.placement, node_id=known[node])
        return dataclasses.replace(options, placement=placement)

    return settle


def _id_of(address: str) -> str:
    living = [facts for facts in ray.nodes() if facts["Alive"]]  # type: ignore[no-untyped-call]
    wanted = ipaddress.ip_address(address)
    found = [facts["NodeID"] for facts in living if ipaddress.ip_address(facts["NodeManagerAddress"]) == wanted]
    if len(found) > 1:
        raise ConnectError(f"--node: {len(found)} nodes have the address {address}; give one's id: {', '.join(found)}")
    if not found:
        nodes = ", ".join(f"{facts['NodeID']} ({facts['NodeManagerAddress']})" for facts in living) or "none"
        raise ConnectError(f"--node: no living node has the address {address}; the cluster's nodes are {nodes}")
    return str(found[0])
