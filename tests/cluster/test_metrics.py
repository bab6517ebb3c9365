"""Metrics of a session, as Prometheus would scrape them; and its events as lines of a log."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node_rig import until
from prometheus_client.parser import text_string_to_metric_families
from ray_rig import DEADLINE, Driver, Nodes, ended, shell

from ray_launcher import ExitReport, RayProcLauncher
from ray_launcher.cluster import eventlog, metrics
from ray_launcher.cluster.eventlog import VARIABLE
from ray_launcher.cluster.events import Happening

#: A driver on a Ray of its own, which tells its metrics every second.
DRIVER = """
import logging, os, sys, ray
from ray_launcher import LaunchOptions, RayProcLauncher

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error",
         object_store_memory=100 << 20, _metrics_export_port=int(sys.argv[1]),
         _system_config={"metrics_report_interval_ms": 1000})
def sh(script, **more):
    return LaunchOptions(program="sh", args=["-c", script], **more)
with RayProcLauncher(session="watched") as launcher:
    ends = {"zero": sh("exit"), "other": sh("exit 3"), "killed": sh("kill -9 $$"),
            "missing": LaunchOptions(program="/no/such"), "again": sh("exit 1", max_restarts=1, restart_delay=0)}
    for result in launcher.launch_many(ends).values():
        result.exit_port.wait(60)
    launcher.launch("lives", sh("sleep 9999"))
    print("READY", ray.nodes()[0]["NodeManagerAddress"], flush=True)
    if sys.stdin.readline() == "kill\\n":
        spawner = ray.get_actor("spawner-watched", "ray_launcher")
        os.kill(ray.get(spawner.facts.remote())["pid"], 9)
        sys.stdin.readline()
    launcher.close(0)
    print("CLOSED", flush=True)
    sys.stdin.readline()
"""


class Scraped:
    """What one scrape of a port has found of ours."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self.samples = [each for family in families for each in family.samples if "ray_launcher" in each.name]

    def value(self, name: str, **labels: str) -> float | None:
        """The sum; None where there is none."""
        found = [
            each.value
            for each in self.samples
            if each.name == f"ray_{name}" and labels.items() <= {**each.labels}.items()
        ]
        return sum(found) if found else None


def scrape(address: str, port: int) -> Scraped:
    command = [sys.executable, "-c", "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"]
    done = subprocess.run([*command, f"http://{address}:{port}/metrics"], capture_output=True, text=True, check=True)
    return Scraped(done.stdout)


@pytest.fixture
def driver() -> Iterator[tuple[Driver, str, int]]:
    """Its session has procs; where to scrape."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
    driver = Driver(DRIVER, str(port))
    try:
        yield driver, driver.read().split()[1], port
    finally:
        driver.close()


def test_a_scrape_shows_what_there_is_and_the_end_of_a_session_takes_gauges_back(
    driver: tuple[Driver, str, int],
) -> None:
    process, address, port = driver

    def shown() -> Scraped | None:
        found = scrape(address, port)
        return found if found.value("ray_launcher_procs", state="RUNNING") else None

    seen = until(shown, "the metrics", DEADLINE)
    assert seen is not None
    assert seen.value("ray_launcher_procs", state="RUNNING", node=address, session="watched") == 1
    kinds = {kind: seen.value("ray_launcher_exits_total", kind=kind) for kind in metrics.KINDS}
    assert kinds == {"exited 0": 1, "exited other": 3, "signaled": 1, "failed": 1}
    assert seen.value("ray_launcher_restarts_total", session="watched") == 1
    assert seen.value("ray_launcher_launch_seconds_count", session="watched") is not None
    notices = seen.value("ray_launcher_exit_notice_seconds_count", session="watched")
    slow = seen.value("ray_launcher_exit_notice_seconds_bucket", le="60.0")
    assert notices == slow == 6
    supervisors = seen.value("ray_launcher_supervisor_bytes", node=address)
    assert supervisors is not None
    assert 1 << 20 < supervisors < 100 << 20
    process.tell("close")
    assert process.read() == "CLOSED"
    until(lambda: not scrape(address, port).value("ray_launcher_procs"), "no procs any more", DEADLINE)
    assert not scrape(address, port).value("ray_launcher_supervisor_bytes")
    assert scrape(address, port).value("ray_launcher_exits_total", kind="signaled") == 2


@pytest.mark.slow
def test_what_a_spawner_told_before_it_was_killed_does_not_stay(driver: tuple[Driver, str, int]) -> None:
    """Ray shows the gauges of a dead process for two intervals more."""
    process, address, port = driver

    def running() -> list[tuple[str, float]]:
        samples = scrape(address, port).samples
        found = [each for each in samples if each.labels.get("state") == "RUNNING"]
        return [(each.labels["WorkerId"], each.value) for each in found]

    before = until(running, "the metrics", DEADLINE)
    process.tell("kill")

    def others() -> bool:
        return [(worker != before[0][0], count) for worker, count in running()] == [(True, 1)]

    until(others, "those of the next spawner, and no others", DEADLINE)
    process.tell("close")
    while process.read() != "CLOSED":  # Ray has its say there, too
        pass


@pytest.mark.parametrize(
    "report, kind",
    [
        (ExitReport(0, None, False, None, ()), "exited 0"),
        (ExitReport(None, None, False, None, ()), "exited other"),
        (ExitReport(None, 0, False, None, ()), "signaled"),
        (ExitReport(0, 9, False, "", ()), "failed"),
    ],
)
def test_kinds_are_those_of_the_contract(report: ExitReport, kind: str) -> None:
    assert metrics.kind_of(report) == kind
    assert kind in metrics.KINDS


def test_where_nothing_is_exported_nothing_is_noted() -> None:
    async def noted() -> tuple[int, ...]:
        living: Any = list
        found = metrics.Metrics("s", living, _no_memory, is_on=lambda: False)
        found.heard_of_end(time.time())
        await asyncio.wait([found._task])
        found.heard_of_end(time.time())
        return (len(found._notices), len(found._launches), len(found._exits))

    assert asyncio.run(noted()) == (0, 0, 0)


async def _no_memory() -> dict[str, float]:
    return {}


def test_events_are_lines_of_json_in_the_log_of_the_spawner_where_asked_for(nodes: Nodes) -> None:
    asked = {"env_vars": {VARIABLE: "1"}}
    with RayProcLauncher(session="logged", runtime_env=asked, grace=1) as launcher:
        ended(launcher.launch("a", shell("exit 3", nodes.on("a"), env={"SECRET": "5ec4e7"})).exit_port)

        def lines() -> list[dict[str, Any]]:
            logs = Path(tempfile.gettempdir()).glob("ray/session_2*/logs/worker-*.err")
            return [json.loads(line) for log in logs for line in log.read_text().splitlines() if '"logged"' in line]

        found = until(lambda: [each for each in lines() if each["state"] == "EXITED"], "the last event", DEADLINE)
    assert [each["state"] for each in lines()][:2] == ["PENDING", "STARTING"]
    [end] = found
    assert (end["proc_id"], end["exit_code"], end["result"]) == ("a", 3, "exited with code 3")
    assert end["node_id"] == nodes.ids()["a"]
    assert "5ec4e7" not in json.dumps(lines())


def test_events_are_not_logged_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(eventlog, "line", lambda *_: logged.append("line"))
    for value in ("", "0"):
        monkeypatch.setenv(VARIABLE, value)
        eventlog.event_log("s")(Happening(0.0, "a", "PENDING", None, None, None, None, 0, None))
    assert logged == []
