"""What a proc is bound to and held to: ``ProcBind``, and the checks of the limits among the launch options.

Called by ``options`` only. Standard library only; knows nothing of Ray.
"""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass, fields
from typing import TypeAlias

from ray_launcher import checks
from ray_launcher.frozen import FrozenMapping

__all__ = ["ProcBind", "RlimitValue"]

RlimitValue: TypeAlias = "int | tuple[int | None, int | None] | None"

#: As the resource module has them on Linux, without RLIMIT_.
_RLIMITS = (
    *("as", "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice"),
    *("nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
)
_UNLIMITED = -1  # resource.RLIM_INFINITY
_LARGEST = 2**63 - 1
_LAST_SIGNAL = 64
_SMALLEST_LOG = 64 << 10


@dataclass(frozen=True, kw_only=True)
class ProcBind:
    """CPUs and memory nodes that a proc is bound to; None leaves one as it is.

    Each is a list of numbers and ranges as numactl and taskset take it: ``"0-3,8"``. The numbers are those of the
    machine. Of several lists of CPUs those count that are in all. The proc inherits it to its children; they may change
    it, as with numactl.

    What the machine lacks, or Ray's own processes there may not use (a cpuset, a taskset), makes the launch `Failed`,
    and so does a set of CPUs that is empty. Nothing is ever bound to less than what was asked for, save that of a NUMA
    node's CPUs only those count that may be used.

    Raises TypeError or ValueError, naming the argument.
    """

    cpunodebind: str | None = None
    """NUMA nodes whose CPUs the proc may use."""
    membind: str | None = None
    """NUMA nodes whose memory the proc may use, and no other even when it runs out (MPOL_BIND)."""
    physcpubind: str | None = None
    """CPUs that the proc may use, by the numbers of ``/proc/cpuinfo``."""
    cpus: str | None = None
    """CPUs that the proc may use, as ``taskset --cpu-list`` takes them. The same as ``physcpubind``."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = checks.optional(checks.number_list, f"ProcBind.{each.name}", getattr(self, each.name))
            checks.store(self, each.name, value)


def rlimits(where: str, value: object) -> FrozenMapping[str, tuple[int, int]]:
    """{name in lower case: (soft, hard)}, with -1 for unlimited."""
    given = checks.mapping(checks.utf8_text, _rlimit, where, value)
    named: dict[str, tuple[int, int]] = {}
    for name, limits in given.items():
        entry = checks.entry_of(where, name)
        plain = name.lower()
        if plain not in _RLIMITS:
            raise ValueError(f"{entry} is no limit; write one of {', '.join(_RLIMITS)}")
        if plain in named:
            raise ValueError(f"{entry} is there twice, in capitals and small letters; leave one out")
        named[plain] = limits
    return FrozenMapping(named)


def _rlimit(where: str, value: object) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{where} must be (soft, hard), not {len(value)} numbers; write one number for both")
        soft, hard = (_rlimit_number(f"{where}[{index}]", item) for index, item in enumerate(value))
    else:
        soft = hard = _rlimit_number(where, value)
    if _size(soft) > _size(hard):
        raise ValueError(f"{where} has a soft limit above its hard limit; write (soft, hard) with soft <= hard")
    return soft, hard


def _rlimit_number(where: str, value: object) -> int:
    return _UNLIMITED if value is None else checks.within(where, value, _UNLIMITED, _LARGEST)


def _size(limit: int) -> float:
    return math.inf if limit == _UNLIMITED else limit


def umask(where: str, value: object) -> int:
    """0 to 0o777."""
    return checks.within(where, value, 0, 0o777, oct)


def nice(where: str, value: object) -> int:
    """-20 to 19."""
    return checks.within(where, value, -20, 19)


def log_limit(where: str, value: object) -> int:
    """Bytes, 64 KiB at the least: a line in a stderr tail may be as long."""
    return checks.within(where, value, _SMALLEST_LOG, _LARGEST)


def time_limit(where: str, value: object) -> float | None:
    """Seconds, more than 0; None for none, as infinity."""
    seconds = checks.optional(checks.seconds, where, value)
    if seconds == 0:
        raise ValueError(f"{where} must be more than 0; write a number of seconds, or None for no limit")
    return None if seconds == math.inf else seconds


def pre_kill_signal(where: str, value: object, limit: float | None) -> tuple[int, float]:
    """(signal number, seconds before the time limit)."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{where} must be (signal, seconds); write it as (signal.SIGUSR1, 30)")
    signum = checks.within(f"{where}[0]", value[0], 1, _LAST_SIGNAL)
    if signum not in signal.valid_signals():
        raise ValueError(f"{where}[0] is no signal of this system; see signal.valid_signals()")
    lead = checks.seconds(f"{where}[1]", value[1])
    if limit is None:
        raise ValueError(f"{where} comes so long before the time limit; set LaunchOptions.time_limit too")
    if not 0 < lead < limit:
        raise ValueError(f"{where}[1] must be more than 0 and less than the time limit, in seconds")
    return signum, lead
