"""`ProcInfo`: what a session knows about one proc at one moment."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Literal, TypeAlias

from ray_launcher.exits import ProcExitResult

#: PENDING: waits for a node.  STARTING: on its way to one.  RUNNING: its process runs.  TERMINATING: so, and asked to
#: end.  EXITED: the result is there.
ProcState: TypeAlias = Literal["PENDING", "STARTING", "RUNNING", "TERMINATING", "EXITED"]


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One start of a proc that has been restarted since; its parts are as in `ProcInfo`."""

    node_id: str | None
    node_ip: str | None
    pid: int | None
    started_at: datetime | None
    exited_at: datetime | None
    result: ProcExitResult


@dataclasses.dataclass(frozen=True)
class ProcInfo:
    """One proc at one moment; what is not known, or not yet, is None.

    node_id, node_ip: Ray's, of the node it is on.  pid: the leader's, on that node.  started_at, exited_at: UTC, by the
    clocks of its node and of the spawner's.  result: once EXITED.  gang_id, rank: None outside gangs.
    ready: whether it runs and is ready, see `LaunchOptions.ready_when`.
    restarts: how often it has been started again.  attempts: what came before the last of its starts, at most 20.
    waits_for: while PENDING for resources, what it needs, what the best node has of it, and who holds the rest; before
    a restart, how long that takes, and why it is needed.
    """

    proc_id: str
    state: ProcState
    node_id: str | None = None
    node_ip: str | None = None
    pid: int | None = None
    started_at: datetime | None = None
    exited_at: datetime | None = None
    result: ProcExitResult | None = None
    gang_id: str | None = None
    rank: int | None = None
    restarts: int = 0
    ready: bool = False
    waits_for: str | None = None
    attempts: tuple[Attempt, ...] = ()


@dataclasses.dataclass(frozen=True)
class ProcEvent:
    """A proc has come to be in another state; its parts are as in `ProcInfo`. when: UTC, by the spawner's clock."""

    when: datetime
    proc_id: str
    state: ProcState
    node_id: str | None = None
    node_ip: str | None = None
    pid: int | None = None
    gang_id: str | None = None
    rank: int | None = None
    restarts: int = 0
    result: ProcExitResult | None = None
