"""The driver of a `remote.Session`: holds a session, and does what the lines of its stdin say.

Usage: remote_driver.py ADDRESS SETTINGS, the latter JSON, for `RayProcLauncher`. A line is JSON: a verb and its
arguments. Each is answered by one line, `{"answer": ...}` or `{"error": ...}`; between them, `{"exit": ...}` tells of
ports that resolve. Both ends when stdin does.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from ray_launcher import Failed, LaunchOptions, Placement, ProcExitResult, RayProcLauncher
from ray_launcher.cluster.actors import NAMESPACE

_writing = threading.Lock()
_to_test = os.dup(1)
os.dup2(2, 1)  # others may print, too


def _write(**what: object) -> None:
    with _writing:
        os.write(_to_test, json.dumps(what).encode() + b"\n")


class Verbs:
    """What can be asked for."""

    def __init__(self, launcher: RayProcLauncher) -> None:
        self._launcher = launcher

    def session(self) -> str:
        return self._launcher.session

    def launch(self, proc_id: str, node_id: str, program: str, args: list[str]) -> None:
        opts = LaunchOptions(program=program, args=args, placement=Placement(node_id=node_id))
        port = self._launcher.launch(proc_id, opts).exit_port
        port.add_done_callback(functools.partial(_tell, proc_id))

    def nodes(self) -> dict[str, str]:
        """{address: node id} of those that live in Ray's eyes."""
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        return {node["NodeManagerAddress"]: node["NodeID"] for node in nodes if node["Alive"]}

    def states(self) -> dict[str, str]:
        return {info.proc_id: info.state for info in self._launcher.procs()}

    def actors(self) -> list[str]:
        """Names of our actors, of all sessions."""
        named = ray.util.list_named_actors(all_namespaces=True)
        return [actor["name"] for actor in named if actor["namespace"] == NAMESPACE]

    def close(self, grace: float) -> None:
        self._launcher.close(grace)


def _tell(proc_id: str, result: ProcExitResult) -> None:
    at = time.monotonic()
    reason = result.kind.reason if isinstance(result.kind, Failed) else None
    _write(exit={"proc_id": proc_id, "at": at, "text": str(result), "returncode": result.returncode, "reason": reason})


def main(address: str, settings: str) -> None:
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    verbs = Verbs(RayProcLauncher(**json.loads(settings)))
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        method: Callable[..., Any] = getattr(verbs, verb)
        try:
            answer = method(*arguments)
        except Exception as error:  # noqa: BLE001  # the test shall see it
            _write(error=repr(error))
        else:
            _write(answer=answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
