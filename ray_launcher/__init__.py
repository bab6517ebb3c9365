"""Start operating-system processes ("procs") on the nodes of a Ray cluster, and learn exactly once how each ended.

The package reads top to bottom as the story of one launch: `LaunchOptions` say what to run (options); a launcher sends
them (launcher, session) to a spawner actor (spawner, cluster.spawner), which hands them to the agent of a node
(cluster.agent), whose Ray-free supervisor (node.supervisor) starts the process (node.process). When that exits, its
report travels back the same way to the `ExitPort` (port) and becomes a `ProcExitResult` (exits).
"""

from ray_launcher.calls import Call
from ray_launcher.checkup import Diagnosis, Finding, NodeFacts
from ray_launcher.cluster.leftovers import Leftover, find_leftovers, reap
from ray_launcher.doctor import examine_cluster
from ray_launcher.errors import (
    CallError,
    DecodeError,
    KillError,
    LaunchError,
    LogsLostError,
    NotReadyError,
    ProcLauncherError,
    TerminateError,
    UnknownProcError,
    UnknownSessionError,
    UnknownSpawnerError,
)
from ray_launcher.exits import (
    Exited,
    ExitReport,
    Failed,
    ProcExitKind,
    ProcExitResult,
    Signaled,
    StdioHandling,
    decode_exit,
)
from ray_launcher.gang import Gang, GangResult, is_spare
from ray_launcher.info import Attempt, ProcEvent, ProcInfo, ProcState
from ray_launcher.launcher import ActorProcLauncher, LaunchResult, ProcLauncher
from ray_launcher.logs import LogChunk
from ray_launcher.nodes import NodeSummary, list_nodes
from ray_launcher.options import LaunchOptions, Placement, ProcBind
from ray_launcher.plugins import find_spawner, spawner_names
from ray_launcher.port import ExitPort
from ray_launcher.ranks import Strategy, gang_env
from ray_launcher.readiness import ReadyWhen
from ray_launcher.session import RayProcLauncher
from ray_launcher.sessions import SessionSummary, list_sessions
from ray_launcher.spawner import ProcSpawner, start_spawner
from ray_launcher.stdin import Stdin
from ray_launcher.usage import ProcUsage

__version__ = "0.1.0"

__all__ = [
    "ActorProcLauncher",
    "Attempt",
    "Call",
    "CallError",
    "DecodeError",
    "Diagnosis",
    "ExitPort",
    "ExitReport",
    "Exited",
    "Failed",
    "Finding",
    "Gang",
    "GangResult",
    "KillError",
    "LaunchError",
    "LaunchOptions",
    "LaunchResult",
    "Leftover",
    "LogChunk",
    "LogsLostError",
    "NodeFacts",
    "NodeSummary",
    "NotReadyError",
    "Placement",
    "ProcBind",
    "ProcEvent",
    "ProcExitKind",
    "ProcExitResult",
    "ProcInfo",
    "ProcLauncher",
    "ProcLauncherError",
    "ProcSpawner",
    "ProcState",
    "ProcUsage",
    "RayProcLauncher",
    "ReadyWhen",
    "SessionSummary",
    "Signaled",
    "Stdin",
    "StdioHandling",
    "Strategy",
    "TerminateError",
    "UnknownProcError",
    "UnknownSessionError",
    "UnknownSpawnerError",
    "decode_exit",
    "examine_cluster",
    "find_leftovers",
    "find_spawner",
    "gang_env",
    "is_spare",
    "list_nodes",
    "list_sessions",
    "reap",
    "spawner_names",
    "start_spawner",
]
