"""Ray's control service, the GCS, killed: the end of the cluster and its procs, or with Redis behind it, of nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gcs_rig import GcsCluster, gcs_cluster, redis
from node_rig import running, until
from ray_rig import procs_of, slowness

#: Seconds that Ray's processes go on without a GCS; 60 by default.
RECONNECT = 3
#: Seconds after that in which everything of ours is gone: the supervisor gives procs 2 s between TERM and KILL.
GONE = 5.0

STUBBORN = "trap : TERM; echo $$; while :; do sleep 1; done"


@pytest.fixture(scope="module")
def lasting() -> Iterator[GcsCluster]:
    """A cluster with Redis behind its GCS."""
    with redis() as address, gcs_cluster({"RAY_REDIS_ADDRESS": address}, reconnect=60) as cluster:
        cluster.connect()
        assert cluster.ask("launch('first', 'exit 3') or result('first')") == [3, []]
        yield cluster


@contextlib.contextmanager
def outage(cluster: GcsCluster) -> Iterator[None]:
    """There is no GCS for as long as this is open."""
    cluster.kill_gcs()
    try:
        yield
    finally:
        cluster.start_gcs()


def start(cluster: GcsCluster, proc_id: str, script: str) -> int:
    """A proc that runs; its pid."""
    cluster.ask(f"launch({proc_id!r}, {'echo $$; ' + script!r})")
    return int(cluster.ask(f"first_line({proc_id!r})"))


def test_a_proc_lives_through_a_restart_of_the_gcs(lasting: GcsCluster) -> None:
    pid = start(lasting, "lives", "exec sleep 9999")
    for _ in range(2):
        with outage(lasting):
            assert running(pid)
        assert lasting.ask("launch('after', 'exit 4') or result('after')") == [4, []]
    assert running(pid)
    assert lasting.ask("[info.pid for info in launcher.procs() if info.state == 'RUNNING']") == [pid]
    assert lasting.ask("launcher.terminate('lives', 9) or result('lives')") == [-signal.SIGTERM, []]


def test_an_exit_while_there_is_no_gcs_arrives(lasting: GcsCluster, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    pid = start(lasting, "ends", f"read -r _ <'{gate}'; echo last >&2; exit 5")
    with outage(lasting):
        gate.write_text("go\n")
        until(lambda: not running(pid), "it has ended")
    assert lasting.ask("result('ends')") == [5, ["last"]]


def test_requests_and_launches_need_no_gcs_or_wait_for_it(lasting: GcsCluster) -> None:
    pid = start(lasting, "killed", "exec sleep 9999")
    with outage(lasting):
        lasting.ask("launcher.kill('killed')")
        lasting.ask("launch('late', 'exit 6')")
        until(lambda: not running(pid), "it is gone")
    assert lasting.ask("result('killed')") == [-signal.SIGKILL, []]
    assert lasting.ask("result('late')") == [6, []]


def test_spawner_and_agent_killed_while_there_is_no_gcs_come_back_with_it(lasting: GcsCluster) -> None:
    pid = start(lasting, "lives", "exec sleep 9999")
    before = lasting.ask("pids()")
    with outage(lasting):
        for each in before:
            os.kill(each, signal.SIGKILL)
        until(lambda: not any(map(running, before)), "they are gone")
    assert lasting.ask("launch('after', 'exit 7') or result('after')") == [7, []]
    assert not set(before) & set(lasting.ask("pids()"))
    assert running(pid)
    assert lasting.ask("launcher.kill('lives') or result('lives')") == [-signal.SIGKILL, []]


def test_without_redis_the_cluster_ends_and_everything_with_it() -> None:
    with gcs_cluster({}, RECONNECT) as cluster:
        session = cluster.connect()
        for n in range(3):
            start(cluster, f"proc {n}", STUBBORN)
        assert len(procs_of(session)) >= 3
        cluster.kill_gcs()
        killed = time.monotonic()
        until(lambda: not procs_of(session), "its procs are gone", 60)
        until(lambda: not cluster.processes("node/main.py"), "supervisors and guards are gone", 60)
        assert time.monotonic() - killed < RECONNECT + GONE * slowness()
        until(lambda: not cluster.processes("ray::"), "agents and spawner are gone", 60)
        assert not [*cluster.directory.glob("ray-launcher-*")]
        assert not [*cluster.directory.glob("ray/session_*/logs/ray-launcher-spare-*")]
