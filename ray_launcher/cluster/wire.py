"""What the spawner and its agents say to each other; plain, frozen and picklable."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import Any, NamedTuple

from ray_launcher.desk import LaunchKey
from ray_launcher.exits import ExitReport
from ray_launcher.ranks import Member
from ray_launcher.readiness import ReadyWhen

STREAMS = ("stdout", "stderr")
#: By the name of a stream: the end of its file's name. The value is what a callable returned, see `callables`.
ENDS = {"stdout": "out", "stderr": "err", "value": "value"}


@dataclasses.dataclass(frozen=True)
class SessionInfo:
    """What every part of a session knows. Times in seconds.

    name: unique on the cluster.  grace: from TERM to KILL when the session ends without `close`.
    lease: how long a node's procs live without contact to the spawner.
    start: how long an agent may take to answer for the first time, besides what its runtime_env takes.
    detached: it outlives its driver.  history: how many procs that have ended are remembered.
    created: when, by its driver's clock.  owner: the launcher that ends with it, unless it is detached.
    """

    name: str
    grace: float = 5.0
    lease: float = 30.0
    start: float = 60.0
    detached: bool = False
    history: int = 1000
    created: float = 0.0
    owner: str = ""


class Grant(NamedTuple):
    """What was decided where a launch was placed. accelerators: ids by resource name.  env: further variables.

    port: the name under which the agent keeps a port that the proc may open.
    """

    accelerators: dict[str, list[str]]
    env: dict[str, str]
    port: str | None = None


class Launch(NamedTuple):
    """Start launch `token`.

    payload: a pickled (proc_id, options), or (proc_id, options, `Member` or None, `Inside`).
    note: see `Note`, pickled.  grant: what it gets.
    """

    token: str
    payload: bytes
    note: bytes
    grant: Grant | None = None


class Inside(NamedTuple):
    """The living proc of the same node, of any session, whose environment and directory a launch gets.

    token: of its launch.  pid: its leader's.
    """

    proc_id: str
    token: str
    pid: int


class Request(NamedTuple):
    """Terminate launch `token` with `timeout` seconds, or kill it (None)."""

    token: str
    timeout: float | None


class Signal(NamedTuple):
    """Send signal `signum` to the processes of launch `token`. key: of the message that asks for it."""

    token: str
    signum: int
    key: LaunchKey


class Note(NamedTuple):
    """What a restarted spawner must know of a launch, kept by the supervisor.

    lease: the name of its own, or of its gang's.  member: its rank.  ready_when, forget: see `LaunchOptions`.
    """

    proc_id: str
    key: LaunchKey
    lease: str | None = None
    member: Member | None = None
    ready_when: ReadyWhen | None = None
    forget: bool = False


class Started(NamedTuple):
    """Launch `token` runs as process `pid` since `when` (`time.time` of its node)."""

    token: str
    pid: int
    when: float
    note: bytes = b""


class Exit(NamedTuple):
    """Launch `token` has ended. sequence: the agent's number for this report, until it is acknowledged.

    when: `time.time` of its node.
    """

    sequence: int
    token: str
    report: ExitReport
    note: bytes = b""
    when: float | None = None


class Inventory(NamedTuple):
    """All that an agent knows: what runs, and the ends that nobody has acknowledged.

    join: names the join that this answers.  forgot: launches may have run there of which nothing is known any more.
    leaving: see `News`.
    """

    join: str
    forgot: bool
    running: list[Started]
    ended: list[Exit]
    leaving: bool = False


class News(NamedTuple):
    """What has happened on a node: all news behind number `after`, up to number `upto`.

    leaving: the node's raylet has gone, and nothing can be started there any more.
    """

    after: int
    upto: int
    items: list[Started | Exit]
    leaving: bool = False


class Location(NamedTuple):
    """Where an attempt of a proc is, or was. agent: None where it never came to a node, or that is lost.

    may_follow: whether there is another attempt, or may be.  node: in words; None: it never came to one, or not yet.
    """

    agent: Any
    token: str
    attempt: int
    may_follow: bool
    node: str | None


def token_of(key: LaunchKey, attempt: int = 0) -> str:
    """The name of a launch below the spawner: short, fit for file names, and the same whenever it is asked for.

    attempt: each restart has a name of its own.
    """
    launcher, number = key
    restart = b"/%d" % attempt if attempt else b""
    return hashlib.blake2b(b"%s/%d%s" % (launcher.encode(), number, restart), digest_size=16).hexdigest()


def log_name(session: str, proc_id: str, token: str, stream: str) -> str:
    """The name of a proc's log file in Ray's log directory; `proc_id` only shows through, it may hold anything."""
    shown = re.sub(r"[^A-Za-z0-9._-]", "_", proc_id)[:60]
    return f"ray-launcher-{session}-{shown}-{token[:12]}.{ENDS[stream]}"
