"""What to start, where, and how: ``LaunchOptions`` with its parts ``Placement`` and ``ProcBind``.

Written by the user, sent as they are to the spawner and on to the node. All checks are made here, once: an instance
that exists is valid, plain and picklable. Standard library only; knows nothing of Ray.

All three are frozen and take keywords only; ``dataclasses.replace`` changes a field and checks again. A wrong type
raises TypeError and a wrong value ValueError; the message names the argument and the way out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeAlias

from ray_launcher import checks, limits
from ray_launcher.callables import launch_fields
from ray_launcher.frozen import EnvMapping, SecretMapping
from ray_launcher.limits import ProcBind, RlimitValue
from ray_launcher.placement import Placement
from ray_launcher.readiness import ReadyWhen

__all__ = ["LaunchOptions", "Placement", "ProcBind", "check_proc_id", "check_timeout", "check_tty_size"]

StrPath: TypeAlias = "str | os.PathLike[str]"

_PROC_ID_BYTES = 4096
#: Seconds. Kubernetes' number: https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy
LONGEST_RESTART_DELAY = 300.0
#: Rows or columns: the kernel's own bound.
_BIGGEST_TTY = 0xFFFF
_HIDDEN = ("bootstrap_payload",)
_SECRET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
#: Bytes of all secrets of a proc.
_SECRETS = 1 << 20


@dataclass(frozen=True, kw_only=True, repr=False)
class LaunchOptions:
    """One proc to start: program, arguments, environment, stdio, and where.

    No shell reads any of it. Every text may hold the surrogate escapes of ``os.fsdecode``, which reach the proc as the
    bytes they stand for; NUL and other lone surrogates are refused.

    ``repr()`` hides the values of ``env`` and ``bootstrap_payload``.

    Raises TypeError or ValueError, naming the argument, as in ``LaunchOptions.env['A=B']``.
    """

    program: str
    """Path, or a name looked up on the proc's own PATH, on the node."""
    args: Sequence[str] = ()
    """``argv[1:]``. Any iterable of str and paths; stored as a tuple of str."""
    arg0: str | None = None
    """``argv[0]``; None: ``program`` as given."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables to set, over the inherited ones. Stored as a read-only mapping."""
    inherit_env: bool = True
    """Start from the node's environment, else from an empty one."""
    env_remove: Sequence[str] = ()
    """Inherited variables to leave out, as globs: ``("SLURM_*",)``. Stored as a tuple."""
    cwd: str | None = None
    """Working directory on the node; None: the node's own choice."""
    want_stdio: bool = True
    """False: stdout and stderr are discarded, and ``stderr_tail`` is empty."""
    want_stdin: bool = False
    """Open a pipe as stdin, see `RayProcLauncher.stdin`; else it is at its end from the start. For spawners of this
    package, as are the next two."""
    tty: bool = False
    """Start it in a terminal of its own, which is its stdin, stdout and stderr, and the controlling one. What it shows
    counts as stdout. TERM is the node's unless ``env`` sets it."""
    tty_size: tuple[int, int] = (24, 80)
    """Rows and columns of that terminal at first, 1 to 65,535; see `Stdin.resize`."""
    tail_lines: int = 100
    """Lines of stderr to keep for the result; 0: none."""
    log_limit: int | None = None
    """Bytes that are kept of what it writes to stdout, and the same of stderr: the newest, at least 65,536. None: all.
    The proc writes on and on, and is never held up; the node frees what is older about once a second, and much more
    often where a lot is written, so there may be more for a moment. Some file systems (not ext4, XFS, Btrfs, tmpfs)
    cannot free parts of files: there all is kept, and the agent's log says so."""
    process_name: str | None = None
    """Handed to the proc as HYPERACTOR_PROCESS_NAME."""
    bootstrap_payload: str | None = None
    """Handed to the proc as HYPERACTOR_MESH_BOOTSTRAP_MODE. Treated as a secret."""
    log_channel: str | None = None
    """Handed to the proc as BOOTSTRAP_LOG_CHANNEL."""
    proc_bind: ProcBind | None = None
    """CPUs and memory nodes to bind to; None: the node's."""
    rlimits: Mapping[str, RlimitValue] = field(default_factory=dict)
    """Limits by name, as in the resource module without RLIMIT_, in any case: ``{"nofile": 65536, "core": (0, None)}``.
    One number is the soft and the hard limit; None or ``resource.RLIM_INFINITY``: unlimited. What the node does not
    allow makes the launch `Failed`. Stored as a read-only mapping of (soft, hard), -1 for unlimited."""
    umask: int | None = None
    """0 to 0o777; None: the node's."""
    nice: int | None = None
    """-20 to 19, less than the node's (0) only with a privilege, else `Failed`. With the kernel's autogroups, nice
    weighs processes of one proc only (sched(7))."""
    time_limit: float | None = None
    """Seconds from the proc's start to its SIGTERM; None, or infinity, which is stored as None: no limit. The node
    keeps the time, whoever else is down. The result tells how the proc then ended, as ever, and says in a last line of
    ``stderr_tail`` that the limit did it: ``[ray_launcher] time limit of 60 s reached: SIGTERM sent``. That line comes
    on top of ``tail_lines``, also where there are none, and is in no log file."""
    time_limit_grace: float = 10
    """Seconds from that SIGTERM to SIGKILL; infinity: never."""
    pre_kill_signal: tuple[int, float] | None = None
    """(signal, seconds): sent so long before the time limit, which it needs, and not at other ends; as Slurm's and
    Flux's ``--signal``. To the leader only: a wrapper must hand it on, or exec. ``stderr_tail`` says so as above."""
    max_restarts: int = 0
    """How often a proc that fails is started again, on any node that fits, with RAY_LAUNCHER_RESTART_COUNT in its
    environment. Its port resolves with the last attempt. One that was asked to end is not restarted, nor is a program
    that cannot be started, or that finds no place. For spawners of this package."""
    restart_delay: float = 10
    """Seconds before the first restart, 0 to 300; doubled each time up to 300, and back to the first after an attempt
    that ran for 10 minutes. Nothing is held meanwhile."""
    ready_when: ReadyWhen | None = None
    """How to tell that the proc is ready to be used; None: as soon as it runs. See `RayProcLauncher.wait_ready`. For
    spawners of this package."""
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    """Files for the proc alone, by name: letters, digits, ``.``, ``_``, ``-``; 1 MiB in all, text as UTF-8. They
    are in the directory that RAY_LAUNCHER_SECRETS names in the proc's environment, for this user only, and gone with
    the last process of its tree. ``repr`` shows the names. For spawners of this package."""
    forget: bool = False
    """Once the proc has ended its session does not remember it, and its log files are removed. For spawners of this
    package."""
    placement: Placement = field(default_factory=Placement)
    """Where it runs and what it holds there."""

    if TYPE_CHECKING:
        # What may be passed is wider than what is stored.
        def __init__(  # noqa: PLR0913 - one argument per field
            self,
            *,
            program: StrPath,
            args: Iterable[StrPath] = (),
            arg0: str | None = None,
            env: Mapping[str, str] = ...,
            inherit_env: bool = True,
            env_remove: Iterable[str] = (),
            cwd: StrPath | None = None,
            want_stdio: bool = True,
            want_stdin: bool = False,
            tty: bool = False,
            tty_size: tuple[int, int] = (24, 80),
            tail_lines: int = 100,
            log_limit: int | None = None,
            process_name: str | None = None,
            bootstrap_payload: str | None = None,
            log_channel: str | None = None,
            proc_bind: ProcBind | None = None,
            rlimits: Mapping[str, RlimitValue] = ...,
            umask: int | None = None,
            nice: int | None = None,
            time_limit: float | None = None,
            time_limit_grace: float = 10,
            pre_kill_signal: tuple[int, float] | None = None,
            max_restarts: int = 0,
            restart_delay: float = 10,
            ready_when: ReadyWhen | None = None,
            secrets: Mapping[str, bytes | str] = ...,
            forget: bool = False,
            placement: Placement = ...,
        ) -> None: ...

    @classmethod
    def from_callable(cls, fn: Callable[..., object], /, *args: Any, **kwargs: Any) -> LaunchOptions:
        """Options that run `fn(*args, **kwargs)` in a fresh interpreter; set other fields with `dataclasses.replace`.

        The interpreter is the one that runs now, by its path, so the nodes need it in the same place, with cloudpickle.
        What `__main__` defines travels by value, what other modules define by name; they are looked for where this
        process does, too. `RayProcLauncher.value` has what it returns or raises; an exception, also for a value that
        cannot be pickled, ends the proc with code 1 and its traceback on stderr. `replace(..., env=...)` must keep
        `opts.env`. `RayProcLauncher.call` does all of it at once, with arguments of any size.

        Raises TypeError for what is not callable or cannot be pickled, ValueError for more than 1 MiB of pickle.
        """
        return cls(**launch_fields(fn, args, kwargs))

    def __post_init__(self) -> None:
        self._check_command()
        self._check_environment()
        for name in ("inherit_env", "want_stdio", "want_stdin", "tty", "forget"):
            checks.store(self, name, checks.flag(f"LaunchOptions.{name}", getattr(self, name)))
        for name in ("arg0", "process_name", "bootstrap_payload", "log_channel"):
            checks.store(self, name, checks.optional(checks.os_text, f"LaunchOptions.{name}", getattr(self, name)))
        checks.store(self, "tty_size", check_tty_size("LaunchOptions.tty_size", self.tty_size))
        checks.store(self, "tail_lines", checks.count("LaunchOptions.tail_lines", self.tail_lines))
        _check_parts(self.proc_bind, self.placement, self.ready_when)
        if self.ready_when is not None and self.ready_when.log is not None and not self.want_stdio:
            raise ValueError("LaunchOptions.ready_when.log needs the output; leave want_stdio on")
        self._check_limits()
        checks.store(self, "secrets", SecretMapping(_secrets("LaunchOptions.secrets", self.secrets)))
        checks.store(self, "log_limit", checks.optional(limits.log_limit, "LaunchOptions.log_limit", self.log_limit))
        checks.store(self, "max_restarts", checks.count("LaunchOptions.max_restarts", self.max_restarts))
        checks.store(self, "restart_delay", check_restart_delay("LaunchOptions.restart_delay", self.restart_delay))

    def _check_command(self) -> None:
        checks.store(self, "program", _path("LaunchOptions.program", self.program))
        checks.store(self, "args", checks.many(checks.path, "LaunchOptions.args", self.args))
        checks.store(self, "cwd", checks.optional(_path, "LaunchOptions.cwd", self.cwd))

    def _check_environment(self) -> None:
        env = checks.mapping(checks.os_text, checks.os_text, "LaunchOptions.env", self.env)
        for name in env:
            _check_env_name(name)
        checks.store(self, "env", EnvMapping(env))
        checks.store(self, "env_remove", checks.many(_glob, "LaunchOptions.env_remove", self.env_remove))

    def _check_limits(self) -> None:
        checks.store(self, "rlimits", limits.rlimits("LaunchOptions.rlimits", self.rlimits))
        checks.store(self, "umask", checks.optional(limits.umask, "LaunchOptions.umask", self.umask))
        checks.store(self, "nice", checks.optional(limits.nice, "LaunchOptions.nice", self.nice))
        checks.store(self, "time_limit", limits.time_limit("LaunchOptions.time_limit", self.time_limit))
        checks.store(self, "time_limit_grace", check_timeout("LaunchOptions.time_limit_grace", self.time_limit_grace))
        if self.pre_kill_signal is not None:
            where = "LaunchOptions.pre_kill_signal"
            checks.store(self, "pre_kill_signal", limits.pre_kill_signal(where, self.pre_kill_signal, self.time_limit))

    def __repr__(self) -> str:
        shown = ", ".join(f"{each.name}={self._shown(each.name)}" for each in fields(self))
        return f"{type(self).__qualname__}({shown})"

    def _shown(self, name: str) -> str:
        value = getattr(self, name)
        return repr("***" if name in _HIDDEN and value is not None else value)


def check_proc_id(proc_id: object) -> str:
    """A proc's id as an exact str: 1 to 4,096 bytes of UTF-8, no NUL; any other character is fine.

    Raises TypeError or ValueError, naming ``proc_id``.
    """
    checked = checks.word("proc_id", proc_id)
    if len(checked.encode()) > _PROC_ID_BYTES:
        raise ValueError(f"proc_id is longer than {_PROC_ID_BYTES} bytes; choose a shorter id")
    return checked


def check_timeout(name: str, value: object) -> float:
    """A time in seconds as float, 0 or more; infinity means never.

    ``name`` is the argument as the user wrote it. Raises TypeError (also for None and bool) or ValueError, naming it.
    """
    if value is None:
        raise TypeError(f"{name} must be a number of seconds, not None; write math.inf for no limit")
    return checks.seconds(name, value)


def check_tty_size(name: str, value: object) -> tuple[int, int]:
    """Rows and columns of a terminal. Raises TypeError or ValueError, naming it."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise TypeError(f"{name} must be a pair of numbers; write (rows, columns)")
    rows, columns = (checks.within(f"{name}[{at}]", each, 1, _BIGGEST_TTY) for at, each in enumerate(value))
    return rows, columns


def check_restart_delay(name: str, value: object) -> float:
    """Seconds before a restart, 0 to 300. Raises TypeError or ValueError, naming it."""
    seconds = check_timeout(name, value)
    if seconds > LONGEST_RESTART_DELAY:
        raise ValueError(f"{name} must be at most {LONGEST_RESTART_DELAY:g} seconds, not {value!r}")
    return seconds


def _path(where: str, value: object) -> str:
    return checks.not_empty(checks.path, where, value)


def _glob(where: str, value: object) -> str:
    return checks.not_empty(checks.os_text, where, value)


def _check_env_name(name: str) -> None:
    if "=" in name:
        where = checks.entry_of("LaunchOptions.env", name)
        raise ValueError(f"{where}: a name must not contain '='; write the part after it as the value")


def _check_parts(proc_bind: object, placement: object, ready_when: object) -> None:
    if not isinstance(placement, Placement):
        raise TypeError("LaunchOptions.placement must be a Placement; write Placement(num_cpus=...)")
    if not isinstance(proc_bind, ProcBind | None):
        raise TypeError("LaunchOptions.proc_bind must be a ProcBind or None; write ProcBind(cpus='0-3')")
    if not isinstance(ready_when, ReadyWhen | None):
        raise TypeError("LaunchOptions.ready_when must be a ReadyWhen or None; write ReadyWhen(port=8080)")


def _secrets(where: str, value: object) -> dict[str, bytes]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{where} must be a mapping of names to bytes, not {type(value).__name__}")
    found = {}
    for name, content in value.items():
        if not isinstance(name, str):
            raise TypeError(f"{where} must have names that are str, not {type(name).__name__}")
        if not _SECRET_NAME.fullmatch(name):
            raise ValueError(f"{where} has the name {name!r}; use letters, digits, '.', '_' and '-', at most 64")
        if not isinstance(content, (bytes, str)):
            raise TypeError(f"{where}[{name!r}] must be bytes or str, not {type(content).__name__}")
        found[name] = content.encode() if isinstance(content, str) else bytes(content)
    if sum(map(len, found.values())) > _SECRETS:
        raise ValueError(f"{where} has more than 1 MiB; hand over the path of a file that the nodes have instead")
    return found
