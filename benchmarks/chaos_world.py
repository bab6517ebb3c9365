"""The cluster of a chaos run: three nodes on this machine, in a temporary directory, and gone with all of it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from chaos_lives import SLOTS
from chaos_procfs import Process, environ, processes
from ray.cluster_utils import Cluster

_QUIET: dict[str, Any] = {"include_dashboard": False, "num_gpus": 0, "num_cpus": 1, "object_store_memory": 100 << 20}
#: A node that is gone is noticed within five seconds instead of twenty.
_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 4,
}


class World:
    """The nodes, by slot: a slot keeps its name while its nodes come and go ("a" has node a1, then a2)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._nodes: dict[str, tuple[str, Any]] = {}
        self._names: dict[str, str] = {}  # by node id
        self._count = 0
        head = {**_QUIET, "_system_config": _HEALTH_CHECKS, "env_vars": {"CHAOS_NODE": SLOTS[0]}}
        self._cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
        self._put(SLOTS[0], SLOTS[0], self._cluster.head_node)
        for slot in SLOTS[1:]:
            self._add(slot)
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level=logging.ERROR)

    def place(self, slot: str) -> tuple[str, str]:
        """(name, node id) of the node that has the slot now, or had it last."""
        name, node = self._nodes[slot]
        return name, node.node_id

    def name_of(self, id_prefix: str) -> str | None:
        """The name of the node whose id starts so."""
        return next((name for node_id, name in self._names.items() if node_id.startswith(id_prefix)), None)

    def raylets(self) -> dict[int, str]:
        """{pid: node name} of those that should be running."""
        return {_raylet(node): name for name, node in list(self._nodes.values())}

    def kill_raylet(self, slot: str) -> None:
        """SIGKILL; what runs on the node must see for itself."""
        os.kill(_raylet(self._nodes[slot][1]), signal.SIGKILL)  # our own child, not reaped yet

    def replace(self, slot: str) -> None:
        """Tidy up after a node whose raylet was killed, and start another in its slot."""
        self._cluster.remove_node(self._nodes[slot][1], allow_graceful=False)
        self._add(slot)

    def workers(self, title: str) -> dict[Process, str]:
        """Ray workers of ours that show this title, and the names of their nodes."""
        raylets = self.raylets()
        found = (process for process in processes() if process.parent in raylets)
        return {process: raylets[process.parent] for process in found if process.command.startswith(title)}

    def supervisors(self, session: str) -> list[tuple[Process, Process, str | None]]:
        """(supervisor, its guard, node name) of each."""
        shape = re.compile(rf"ray_launcher/node/main\.py \S*/{re.escape(session)}-([0-9a-f]{{16}})")
        found = {process.pid: (process, match) for process in processes() if (match := shape.search(process.command))}
        pairs = ((process, found.get(process.parent), match) for process, match in found.values())
        return [
            (process, guard[0], self.name_of(match[1]))
            for process, guard, match in pairs
            if guard is not None and guard[0].parent not in found  # else it is a child, not exec'ed yet
        ]

    def shut_down(self) -> None:
        """Disconnect and end every node."""
        ray.shutdown()
        self._cluster.shutdown()  # type: ignore[no-untyped-call]

    def _add(self, slot: str) -> None:
        self._count += 1
        name = f"{slot}{self._count}"
        self._put(slot, name, self._cluster.add_node(**_QUIET, env_vars={"CHAOS_NODE": name}))

    def _put(self, slot: str, name: str, node: Any) -> None:
        self._nodes[slot] = name, node
        self._names[node.node_id] = name


def _raylet(node: Any) -> int:
    [info] = node.all_processes["raylet"]
    return int(info.process.pid)


@contextlib.contextmanager
def world() -> Iterator[World]:
    """A cluster with a temporary directory of its own; afterwards nothing that was started in it is left."""
    root = Path(tempfile.mkdtemp(prefix="rlc-"))  # short: Ray makes sockets deep below, and a path has 107 bytes
    os.environ["TMPDIR"], tempfile.tempdir = str(root), None
    os.environ.pop("RAY_TMPDIR", None)
    try:
        world = World(root)
        try:
            yield world
        finally:
            world.shut_down()
    finally:
        _end_everything(root)
        shutil.rmtree(root, ignore_errors=True)


def _end_everything(root: Path) -> None:
    """What is found now has been counted, or comes from a run that broke off."""
    give_up = time.monotonic() + 10
    while (left := [process for process in processes() if _is_ours(process, root)]) and time.monotonic() < give_up:
        for process in left:
            process.send(signal.SIGKILL)
        time.sleep(0.05)


def _is_ours(process: Process, root: Path) -> bool:
    return process.pid != os.getpid() and (f"TMPDIR={root}" in environ(process.pid) or f" {root}/" in process.command)
