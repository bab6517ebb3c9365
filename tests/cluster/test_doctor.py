"""`examine_cluster` on several nodes: each is looked at, and one that does not answer is a finding."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_rig import until
from ray_rig import DEADLINE, Nodes

from ray_launcher import examine_cluster


@pytest.fixture
def stopped(nodes: Nodes) -> Iterator[str]:
    """The id of a node whose raylet does nothing."""
    with nodes.one_more({"zone": "stopped"}) as node_id:
        pid = until(lambda: raylet_of(node_id), "its raylet", DEADLINE)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield node_id
        finally:
            os.kill(pid, signal.SIGCONT)


def raylet_of(node_id: str) -> int:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"/raylet") and f"--node_id={node_id}".encode() in words:
            return int(path.name)
    return 0


def test_every_node_is_looked_at(nodes: Nodes) -> None:
    found = examine_cluster()
    assert {node.node_id for node in found.nodes} == set(nodes.ids().values())
    assert [finding for finding in found.findings if finding.check == "answers"] == []
    assert {node.log_directory.rpartition("/")[2] for node in found.nodes} == {"logs"}
    assert all(node.ray_memory > 0 for node in found.nodes)


@pytest.mark.slow
def test_a_node_that_does_not_answer_is_a_finding(nodes: Nodes, stopped: str) -> None:
    found = examine_cluster()  # perhaps Ray gives it up within that time
    [silent] = [finding for finding in found.findings if finding.check == "answers"]
    assert silent.node_id == stopped
    assert silent.wrong
    assert not found.ok


def test_no_node_is_waited_for_longer_than_asked(nodes: Nodes) -> None:
    found = examine_cluster(timeout=0)
    assert {finding.node_id for finding in found.findings} == set(nodes.ids().values())
    assert {finding.what for finding in found.findings} == {"no answer: nothing within 0 s"}


@pytest.mark.parametrize("timeout, error", [(-1, ValueError), ("soon", TypeError), (None, TypeError)])
def test_a_timeout_that_is_none_is_refused(nodes: Nodes, timeout: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="timeout"):
        examine_cluster(timeout)  # type: ignore[arg-type]
