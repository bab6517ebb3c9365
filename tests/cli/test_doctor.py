"""`ray-launcher doctor`: each check on facts that are made up, and all of them on a cluster that is there."""

from __future__ import annotations

import dataclasses
import json
import platform
from typing import Any

import pytest
import ray
from held_session import verb

import ray_launcher
from ray_launcher import Diagnosis
from ray_launcher.checkup import CHECKS, NodeFacts, Ours, diagnose, silent
from ray_launcher.cli.doctor import report

OURS = Ours("2.60.0", "3.11.7", "0.1.0")
HEALTHY = NodeFacts(
    node_id="n" * 56,
    ip="10.0.0.1",
    ray="2.60.0",
    python="3.11.2",
    ray_launcher="0.1.0",
    niceness=0,
    zombies=0,
    first="tini",
    authentication="token",
    log_directory="/tmp/ray/logs",
    disk=1 << 40,
    inodes=1 << 20,
    files=65536,
    processes=None,
    environ_readable=True,
    ptrace_scope=1,
    hidepid=None,
    lacking=(),
    memory_limit=64 << 30,
    pids_limit=30_000,
    pids=200,
    ray_memory=60 << 30,
    clock=0.2,
)

ILLS: list[tuple[str, dict[str, Any], str]] = [
    ("ray version", {"ray": "2.59.1"}, "Ray 2.59.1, but here it is 2.60.0"),
    ("python version", {"python": "3.12.1"}, "Python 3.12.1, but here it is 3.11.7"),
    ("ray_launcher version", {"ray_launcher": "0.0.9"}, "ray_launcher 0.0.9, but here"),
    ("ray_launcher version", {"ray_launcher": None}, "cannot be imported"),
    ("niceness", {"niceness": 15}, "nice 15"),
    ("reaping", {"zombies": 3, "first": "sleep"}, "PID 1 (sleep) does not wait for its children: 3 zombies"),
    ("authentication", {"authentication": "disabled"}, "is disabled"),
    ("disk space", {"disk": 900 << 20}, "900 MiB free in /tmp/ray/logs"),
    ("disk space", {"inodes": 17}, "17 inodes free"),
    ("open files", {"files": 1024}, "1024 open files"),
    ("processes", {"processes": 512}, "512 processes"),
    ("pids cgroup", {"pids_limit": 1024, "pids": 300}, "300 of at most 1024"),
    ("memory cgroup", {"memory_limit": 2 << 30}, "2048 MiB of memory, and Ray gives 61440 MiB away"),
    ("environ", {"environ_readable": False, "hidepid": "2"}, "hidepid=2, ptrace_scope=1"),
    ("kernel", {"lacking": ("pidfd_open", "child subreapers")}, "lacks pidfd_open, child subreapers"),
    ("clocks", {"clock": -7.5}, "7.5 s behind ours"),
    ("clocks", {"clock": 1.5}, "1.5 s ahead of ours"),
]


@pytest.mark.parametrize("check, ill, what", ILLS)
def test_a_check_finds_what_would_bite_and_says_what_to_do(check: str, ill: dict[str, Any], what: str) -> None:
    [finding] = diagnose(dataclasses.replace(HEALTHY, **ill), OURS)
    assert finding.check == check
    assert what in finding.what
    assert finding.remedy
    assert finding.wrong == (check != "authentication")


def test_every_check_has_an_ill_that_it_finds() -> None:
    assert {check for check, _, _ in ILLS} == set(CHECKS)


def test_nothing_is_found_on_a_healthy_node() -> None:
    assert list(diagnose(HEALTHY, OURS)) == []
    unlimited = dataclasses.replace(
        HEALTHY, memory_limit=None, pids_limit=None, files=None, inodes=None, authentication=None
    )
    assert list(diagnose(unlimited, OURS)) == []


@pytest.mark.parametrize("version, wrong", [("2.39.0", True), ("2.40.0", False), ("3.0.0rc1", False)])
def test_a_ray_that_is_too_old_is_found_where_all_have_it(version: str, wrong: bool) -> None:
    found = list(diagnose(dataclasses.replace(HEALTHY, ray=version), dataclasses.replace(OURS, ray=version)))
    assert [finding.what for finding in found] == ([f"Ray {version}"] if wrong else [])


def test_what_nodes_have_in_common_is_told_once_and_notes_come_last() -> None:
    nodes = [
        dataclasses.replace(HEALTHY, ip=f"10.0.0.{number}", niceness=15, authentication="disabled")
        for number in range(2)
    ]
    findings = [finding for node in nodes for finding in diagnose(node, OURS)]
    lines = report(Diagnosis(tuple(nodes), (*findings, silent("m" * 56, "10.0.0.9", "nothing within 5 s"))))
    assert [line for line in lines if line[0] != " "] == [
        "wrong: niceness: our workers have nice 15, and so have procs: it cannot be undone without a privilege",
        "wrong: answers: no answer: nothing within 5 s",
        lines[6],
        "3 nodes looked at: 2 wrong",
    ]
    assert lines[1] == f"  on 10.0.0.0 ({'n' * 16}), 10.0.0.1 ({'n' * 16})"
    assert lines[6].startswith("note: authentication")


def test_a_cluster_is_looked_at_as_it_is(env: dict[str, str]) -> None:
    """Whether it is healthy is up to the machine that the test runs on."""
    done = verb(env, "doctor", code=None)
    assert "1 node looked at: " in done.stdout
    wrong = any(line.startswith("wrong: ") for line in done.stdout.splitlines())
    assert done.returncode == (1 if wrong else 0)
    again = verb(env, "doctor", "--json", code=None)  # by now the machine may be another
    found = json.loads(again.stdout)
    assert again.returncode == (0 if found["ok"] else 1)
    [node] = found["nodes"]
    assert (node["ray"], node["python"]) == (ray.__version__, platform.python_version())
    assert node["ray_launcher"] == ray_launcher.__version__
    assert node["authentication"] == "token"
    assert node["environ_readable"] is True
    assert node["lacking"] == []
    assert node["niceness"] == 0
    assert abs(node["clock"]) < 1
    assert node["disk"] > 0
    assert node["log_directory"].endswith("/logs")
