"""What the spawner and its agents say to each other; plain, frozen and picklable."""

from __future__ import annotations

import dataclasses
import re

from ray_launcher.exits import ExitReport
from ray_launcher.options import LaunchOptions

NAMESPACE = "ray_launcher"
STREAMS = ("stdout", "stderr")


@dataclasses.dataclass(frozen=True)
class SessionInfo:
    """What every part of a session knows. Times in seconds.

    name: unique on the cluster.  grace: from TERM to KILL when the session ends without `close`.
    orphan_grace: how long a supervisor waits for a new agent.
    """

    name: str
    grace: float = 5.0
    orphan_grace: float = 10.0


@dataclasses.dataclass(frozen=True)
class Launch:
    """Start `opts` as launch `token` (unique for ever) of the proc `proc_id`."""

    token: str
    proc_id: str
    opts: LaunchOptions


@dataclasses.dataclass(frozen=True)
class Request:
    """Terminate launch `token` with `timeout` seconds, or kill it (None)."""

    token: str
    timeout: float | None


@dataclasses.dataclass(frozen=True)
class Signal:
    """Send signal `signum` to the processes of launch `token`."""

    token: str
    signum: int


@dataclasses.dataclass(frozen=True)
class Started:
    """Launch `token` runs as process `pid` since `when` (`time.time` of its node)."""

    token: str
    pid: int
    when: float


@dataclasses.dataclass(frozen=True)
class Exit:
    """Report number `sequence` of an agent: launch `token` has ended."""

    sequence: int
    token: str
    report: ExitReport


def log_name(session: str, proc_id: str, token: str, stream: str) -> str:
    """The name of a proc's log file in Ray's log directory; `proc_id` only shows through, it may hold anything."""
    shown = re.sub(r"[^A-Za-z0-9._-]", "_", proc_id)[:60]
    return f"ray-launcher-{session}-{shown}-{token[:12]}.{'out' if stream == 'stdout' else 'err'}"
