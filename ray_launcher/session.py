"""`RayProcLauncher`: the launcher most people use. It brings the default spawner, and ends with its driver."""

from __future__ import annotations

import atexit
import contextlib
import re
import threading
import uuid
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import fields, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.exceptions import RayError

from ray_launcher import checks
from ray_launcher.calls import Calls
from ray_launcher.cluster.actors import find, spawner_actor
from ray_launcher.cluster.environment import NOT_STARTED, setup_time
from ray_launcher.cluster.wire import Inside, SessionInfo
from ray_launcher.errors import LaunchError, ProcLauncherError, UnknownSessionError
from ray_launcher.exits import ProcExitResult
from ray_launcher.gang import Gang
from ray_launcher.launcher import ActorProcLauncher, LaunchResult
from ray_launcher.options import LaunchOptions, Placement, ProcBind, check_proc_id, check_timeout
from ray_launcher.plan import plan_gang
from ray_launcher.ranks import Strategy
from ray_launcher.sessions import about, attach_or_start
from ray_launcher.view import View

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds for answers that are on their way when the session has ended.
_LAST_ANSWERS = 5.0


class RayProcLauncher(Calls):
    """Launches procs on the nodes of a Ray cluster. A context manager: leaving it ends every proc, unless detached.

    session: a name of its own on the cluster (letters, digits, `.`, `_`, `-`; at most 64); made up when None.
    detached: the session, and its procs, outlive this process, until somebody calls `end`. Where there is a detached
    session of that name already, this launcher attaches to it: it sees and ends the same procs, whoever launched them,
    and `grace`, `lease`, `history` and `runtime_env` are those of who made it. Launches are safe with the cluster
    once `close` has returned, or a port has resolved.
    address: passed to `ray.init` if this process is not connected to a cluster yet; None lets Ray choose, as
    `ray.init()` does: RAY_ADDRESS, else a cluster of its own.
    runtime_env: Ray's; the node agents run in it, so procs inherit its variables and working directory.
    grace: seconds between TERM and KILL for procs whose driver ends without `close`.
    lease: seconds for which a node's procs live without contact to the session's spawner (1 to 86,400). Then they are
    ended, and 2.5 s later each port of that node resolves as `Failed`, naming it: what it says is dead is dead.
    history: how many procs that have ended are remembered (1 to 100,000), with up to 8,000 characters of their stderr.
    What is forgotten while the session lives loses its log files, too; what it has at its end stays for `ray logs`.

    Unless it is detached, the session ends with `close`, with this process however it ends, and with `ray.shutdown()`.
    Raises TypeError or ValueError for bad arguments, ValueError also where a session of that name cannot be used,
    `ProcLauncherError` through Ray Client, and what `ray.init` raises.
    """

    def __init__(  # noqa: PLR0913  # one argument per choice
        self,
        session: str | None = None,
        *,
        detached: bool = False,
        address: str | None = None,
        runtime_env: dict[str, Any] | None = None,
        grace: float = 5.0,
        lease: float = 30.0,
        history: int = 1000,
    ) -> None:
        info = SessionInfo(
            _session_name(session),
            grace=check_timeout("grace", grace),
            lease=_check_lease(lease),
            detached=checks.flag("detached", detached),
            history=checks.within("history", history, 1, 100_000),
        )
        if runtime_env is not None and not isinstance(runtime_env, dict):
            raise TypeError(f"runtime_env must be a dict as ray.init takes it, not {type(runtime_env).__name__}")
        _check_no_client(address)
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
        info = replace(info, owner=uuid.uuid4().hex)
        spawner, begun = attach_or_start(info, runtime_env)
        self._take(spawner, info, owned=not detached, at_once=True)
        if begun is not None:
            self._mail.expect_answer(info.start + setup_time(runtime_env or {}), NOT_STARTED, *begun)

    @classmethod
    def find(cls, session: str) -> Self:
        """A launcher for a session that is there, detached or not; `close` leaves it as it is.

        It can launch in a detached one only: procs of another belong to its driver. `ray.init` must have been called.
        Raises `UnknownSessionError`, TypeError or ValueError for a bad name.
        """
        name = _session_name(session)
        _check_no_client(None)
        if not ray.is_initialized():
            raise UnknownSessionError(f"no session {name!r}: this process is not connected; call ray.init(...) first")
        spawner = find(spawner_actor(name))
        if spawner is None:
            raise UnknownSessionError(f"no session {name!r} on this cluster: see ray_launcher.list_sessions()")
        info, _, _ = about(name, spawner)
        self = cls.__new__(cls)
        self._take(spawner, info, owned=False, at_once=False)
        return self

    def _take(self, spawner: Any, info: SessionInfo, *, owned: bool, at_once: bool) -> None:
        self.session, self.detached = info.name, info.detached
        self._owned = owned
        self._closed = self._session_ended = False
        self._listeners = weakref.WeakSet()
        self._settled = threading.Event()  # closed, and every port has resolved
        ActorProcLauncher.__init__(self, spawner, _id=info.owner if owned else None, _at_once=at_once)
        _at_exit.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, grace: float = 10) -> None:
        """End the session: TERM to every proc, KILL `grace` seconds later, and return when nothing is left.

        Ports resolve with how their procs ended. A second call does nothing. A detached session goes on: this returns
        when all that was asked for is safe with it, and ports resolve while this process runs. Raises TypeError or
        ValueError.
        """
        grace = check_timeout("grace", grace)
        if self._owned:
            self.end(grace)
        elif not self._closed:
            self._closed = True
            _at_exit.discard(self)
            self._mail.flush()

    def end(self, grace: float = 10) -> None:
        """End the session, whoever else uses it; the same as `close` for one that is not detached."""
        grace = check_timeout("grace", grace)
        if self._session_ended:
            return
        self._closed = self._session_ended = True
        _at_exit.discard(self)
        if not self._connected():
            return  # Ray is gone, and the session with it
        try:
            ray.get(self._ask("end_session", grace))
            self._await_ports()
            for listener in list(self._listeners):
                listener.let_go(_LAST_ANSWERS)
            self._mail.close()
        except RayError:
            pass  # the spawner is gone already, and its agents see to the procs
        finally:
            with contextlib.suppress(Exception):
                ray.kill(self._spawner)

    def launch_gang(  # noqa: PLR0913  # one argument per choice
        self,
        gang_id: str,
        opts: LaunchOptions | Callable[[int], LaunchOptions],
        *,
        nnodes: int | tuple[int, int] = 1,
        nproc_per_node: int | Literal["gpu", "cpu"] = 1,
        strategy: Strategy = "SPREAD",
        fail_fast: bool = True,
        grace: float = 10,
        max_restarts: int = 0,
        restart_delay: float = 10,
    ) -> Gang:
        """Launch `nnodes` x `nproc_per_node` procs that get their places all at once, or wait for them.

        nnodes: (fewest, most) for as many as there is room for whenever it is started; it waits for the fewest. The
        highest ranks may then have no part in it: their ports resolve at its end as `Failed`, "not needed: ...", and
        `GangResult` leaves them out.
        opts: of every rank, or a function of the rank; its `placement` is per rank, and the same for all.
        nproc_per_node: "gpu" or "cpu" for as many as the smallest node that suits has; each then holds one.
        strategy: how groups of `nproc_per_node` ranks are put on nodes: Ray's words for placement groups.
        fail_fast: the first rank that fails ends the others, TERM and KILL `grace` seconds later.
        max_restarts: how often all ranks are started again once all have ended and one has failed, with new places, a
        new MASTER_PORT and a higher TORCHELASTIC_RESTART_COUNT; their ports resolve with the last attempt. See
        `LaunchOptions.max_restarts`, and `restart_delay` there, for what is not restarted and how long that takes.

        The proc_ids are "gang_id/0", "gang_id/1" and so on, contiguous per node. Each rank finds in its environment
        what torchrun sets (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT ...), RAY_LAUNCHER_GANG_ID,
        RAY_LAUNCHER_RANK and RAY_LAUNCHER_NPROCS. Its GPUs are all those of its group unless `gpu_mask` says otherwise.

        Raises TypeError or ValueError for bad arguments, `LaunchError` when the launcher is closed.
        """
        gang_id = check_proc_id(gang_id)
        self._check_may_launch()
        plan = plan_gang(gang_id, opts, nnodes, nproc_per_node, strategy, fail_fast, grace, max_restarts, restart_delay)
        launches = dict(self._launch_gang(plan.shape, [self._check_options(each) for each in plan.options]))
        return Gang(
            gang_id,
            list(launches.values()),
            partial(self._end_all, launches),
            partial(self._answer, "gang_cause", plan.shape.uid),
        )

    def exec(self, proc_id: str, opts: LaunchOptions, *, of: View | None = None) -> LaunchResult:
        """Launch a program inside a living proc: on its node, in its environment and in its leader's directory.

        It is a proc of this session, called "PROC_ID.exec-" and 8 digits; it sees the same accelerators, and need not
        end with the other. `opts.env` comes on top of the environment that the proc was started with, `opts.env_remove`
        takes of that, a relative `opts.cwd` starts from where it is now, and `opts.placement` must be left out.

        of: the launcher of the session in which the proc runs; None: this one. A session that is neither detached nor
        this process's own is reached in this way: `RayProcLauncher().exec(..., of=RayProcLauncher.find(name))`.

        Raises TypeError or ValueError for bad arguments, `UnknownProcError`, and `LaunchError` for a proc that does not
        run, or when the launcher is closed.
        """
        if self._check_options(opts).placement != Placement():
            raise ValueError("opts.placement must be left out: it goes where the proc is")
        there = self if of is None else of
        found = there.info(proc_id)
        located = there._answer("locate", proc_id, False)  # noqa: SLF001  # a view, as this one
        if found.pid is None or found.result is not None or located is None:
            raise LaunchError(f"proc {proc_id!r} does not run: it is {found.state}")
        where = replace(opts, placement=Placement(node_id=found.node_id))
        inside = Inside(proc_id, located[1], found.pid)
        return self._launch(f"{proc_id}.exec-{uuid.uuid4().hex[:8]}", where, None, inside)

    def _check_open(self) -> None:
        if self._closed:
            raise LaunchError("the launcher is closed: make a new RayProcLauncher")
        super()._check_open()

    def _hears(self) -> bool:
        return self._connected() and (self._session_ended or not self._closed)

    def _check_may_launch(self) -> None:
        self._check_open()
        if not self._owned and not self.detached:
            raise LaunchError(f"session {self.session!r} is not detached: its procs are launched by its driver alone")

    def _check_options(self, opts: LaunchOptions) -> LaunchOptions:
        return _plain(super()._check_options(opts))

    def _await_ports(self) -> None:
        """Every answer is on its way; let them arrive before the spawner is killed."""
        if self._open:
            self._settled.wait(_LAST_ANSWERS)

    def _ended(self, proc_id: str, number: int, result: Future[ProcExitResult]) -> None:
        super()._ended(proc_id, number, result)
        if self._closed and not self._open:
            self._settled.set()


def _check_no_client(address: str | None) -> None:
    """Ray Client puts a process between us and the cluster that has no callbacks for refs, and takes them with it."""
    if (address or "").startswith("ray://") or ray.util.client.ray.is_connected():  # type: ignore[no-untyped-call]
        raise ProcLauncherError(
            "Ray Client (ray://) cannot tell how procs end: run this on a node of the cluster, "
            "or send it there with `ray job submit`"
        )


def _plain(opts: LaunchOptions) -> LaunchOptions:
    """Of our own class: an agent may not have the module of a subclass."""
    binding = opts.proc_bind
    if type(opts) is LaunchOptions and type(opts.placement) is Placement and type(binding) in (ProcBind, type(None)):
        return opts
    values = {each.name: getattr(opts, each.name) for each in fields(LaunchOptions)}
    values["placement"] = Placement(**{each.name: getattr(opts.placement, each.name) for each in fields(Placement)})
    if binding is not None:
        values["proc_bind"] = ProcBind(**{each.name: getattr(binding, each.name) for each in fields(ProcBind)})
    return LaunchOptions(**values)


def _check_lease(lease: object) -> float:
    seconds = check_timeout("lease", lease)
    if not 1 <= seconds <= 86_400:
        raise ValueError(f"lease must be 1 to 86,400 seconds, not {lease!r}")
    return seconds


def _session_name(session: str | None) -> str:
    if session is None:
        return uuid.uuid4().hex[:12]
    if not isinstance(session, str):
        raise TypeError(f"session must be a str or None, not {type(session).__name__}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", session):
        raise ValueError(f"session must be letters, digits, '.', '_' or '-', at most 64, not {session!r}")
    return session


_at_exit: weakref.WeakSet[RayProcLauncher] = weakref.WeakSet()


@atexit.register  # after Ray's own registration, so called before it
def _close_all() -> None:
    for launcher in list(_at_exit):
        with contextlib.suppress(Exception):
            launcher.close()
