"""`ray-launcher reap`: what nobody sees to any more goes, and what lives is not touched."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from held_session import held, told, verb
from node_rig import running, until
from ray_rig import DEADLINE, procs_of, ran, supervisors_of
from terminal_rig import Terminal

from ray_launcher.node import client

#: Leaves in Ray what only a crash leaves: an actor called an agent that does nothing, keys, and a placement group.
LEAVE = """
import sys, ray
from ray.util.placement_group import placement_group
from ray_launcher.cluster.nodes import living_nodes
from ray_launcher.cluster.registry import Registry

ray.init("auto", log_to_driver=False, logging_level="error")
session, agent = sys.argv[1:]
registry = Registry(session)
registry.add(agent, living_nodes()[0])
registry.save_gang("uid", b"record")
ray.get(placement_group([{"CPU": 1}], name=f"ray-launcher/{session}/lease", lifetime="detached").ready())
class Stuck:
    def answer(self): return True
actor = ray.remote(Stuck).options(
    name=f"agent-{agent}", namespace="ray_launcher", lifetime="detached", num_cpus=0).remote()
ray.get(actor.answer.remote())
"""
LOOK = """
import ray
from ray.experimental.internal_kv import _internal_kv_list
ray.init("auto", log_to_driver=False, logging_level="error")
print(*sorted(key.decode() for key in _internal_kv_list(b"", namespace="ray_launcher")), sep="\\n")
print(*sorted(each["name"] for each in ray.util.list_named_actors(all_namespaces=True)), sep="\\n")
print(*sorted(f"{each['name']} {each['state']}" for each in ray.util.placement_group_table().values()), sep="\\n")
"""
ORPHAN = "trap '' TERM; echo READY; while :; do sleep 9999; done"


class Leftovers:
    """Of a session that is over: a supervisor without an agent, with its guard; a proc of another, which is gone, of
    two processes; and the directories of both.
    """

    def __init__(self, node_id: str) -> None:
        self.session = f"crashed-{uuid.uuid4().hex[:8]}"
        self.agent = f"{self.session}-{node_id[:16]}-0123abcd"
        self.other = f"{self.session}-{node_id[:16]}-4567abcd"
        client.start(client.runtime_directory(self.agent), 0, 9999.0, 1.0)
        self.directory = client.runtime_directory(self.other)
        self.directory.mkdir()
        (self.directory / "supervisor.log").write_text("it crashed")
        cookie = f"{self.session}/{self.other.removeprefix(f'{self.session}-')}/0123"
        self.proc = subprocess.Popen(
            ["sh", "-c", ORPHAN],
            env={**os.environ, "RAY_LAUNCHER_ID": cookie},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.proc.stdout is not None
        assert self.proc.stdout.readline() == b"READY\n"

    def clear(self) -> None:
        for pid in supervisors_of(self.session):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 15)
        for pid in procs_of(self.session):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        shutil.rmtree(self.directory, ignore_errors=True)
        with self.proc:
            self.proc.kill()


@pytest.fixture
def left(env: dict[str, str]) -> Iterator[Leftovers]:
    found = Leftovers(told(env, "nodes")[0]["node_id"])
    yield found
    found.clear()


def test_all_that_a_crash_leaves_goes_and_a_session_that_lives_does_not_notice(
    env: dict[str, str], left: Leftovers
) -> None:
    ran("-c", LEAVE, left.session, left.agent, **env)
    with held(env, "lives", {"a": "sleep 9999", "b": "sleep 9999"}):
        procs, supervisors = procs_of("lives"), supervisors_of("lives")
        all_told = told(env, "reap", "--wait", "1")["found"]
        told_before = told(env, "reap", "--wait", "1", "-S", left.session)
        sessions = {each["session"] for each in all_told}  # of other tests, perhaps, too
        assert left.session in sessions
        assert "lives" not in sessions
        assert {each["kind"] for each in told_before["found"]} == {
            "supervisor",
            "proc",
            "directory",
            "agent",
            "key",
            "placement group",
        }
        assert told_before["reaped"] is False
        assert running(left.proc.pid)
        lines = verb(env, "reap", "--wait", "1", "--yes", "-S", left.session).stdout.splitlines()
        count = len(told_before["found"])
        assert lines[-1] == f"reaped {count} of {count}"
        assert supervisors_of(left.session) == {}
        assert procs_of(left.session) == {}
        assert not left.directory.exists()
        rest = ran("-c", LOOK, **env).splitlines()
        assert [line for line in rest if left.session in line and "REMOVED" not in line] == []
        assert (procs_of("lives"), supervisors_of("lives")) == (procs, supervisors)
        assert [each["proc_id"] for each in told(env, "ps") if each["state"] == "RUNNING"] == ["a", "b"]
        assert verb(env, "reap", "-S", left.session).stdout == "nothing is left over\n"


@pytest.mark.slow
def test_what_belongs_to_another_ray_that_runs_is_left_alone(env: dict[str, str]) -> None:
    """Of a machine without that cluster's address: nothing tells whether anybody sees to it."""
    with held(env, "lives", {"a": "sleep 9999"}):
        alone = {name: value for name, value in env.items() if name != "RAY_ADDRESS"}
        nowhere = {**alone, "RAY_TMPDIR": "/nonexistent"}  # no cluster is recorded there
        assert "lives" not in {each["session"] for each in told(nowhere, "reap")["found"]}
        assert len(procs_of("lives")) == 2  # the shell and what it runs


@pytest.mark.slow
def test_without_a_cluster_this_machine_is_looked_at(env: dict[str, str], left: Leftovers) -> None:
    gone = "0" * 16  # no raylet of that node runs here
    directory = client.runtime_directory(f"{left.session}-{gone}-0123abcd")
    directory.mkdir()
    alone = {name: value for name, value in env.items() if name != "RAY_ADDRESS"}
    found = told({**alone, "RAY_TMPDIR": "/nonexistent"}, "reap", "--yes", "-S", left.session)
    assert [each["what"] for each in found["found"]] == [str(directory)]
    assert not directory.exists()
    assert running(left.proc.pid)  # of a node whose raylet runs


@pytest.mark.slow
def test_where_nobody_can_be_asked_nothing_is_removed(env: dict[str, str], left: Leftovers) -> None:
    done = verb(env, "reap", "-S", left.session, code=125)
    assert "add --yes" in done.stderr
    assert str(left.directory) in done.stdout
    assert left.directory.exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_it_asks_and_no_is_no(env: dict[str, str], left: Leftovers, short_dir: Path) -> None:
    terminal = Terminal(short_dir, env)
    try:
        reap = shlex.join([sys.executable, "-m", "ray_launcher", "reap", "-S", left.session])
        terminal.keys(reap + "; echo code=$?", "Enter")
        terminal.shows("Remove these 6? [y/N]:")
        terminal.keys("n", "Enter")
        terminal.shows("code=0")
        assert running(left.proc.pid)
        terminal.keys(reap + "; echo again=$?", "Enter")
        until(lambda: sum("Remove these 6" in line for line in terminal.lines()) == 2, "asked again", DEADLINE)
        terminal.keys("y", "Enter")
        terminal.shows("reaped 6 of 6", "again=0")
    finally:
        terminal.close()
    assert not left.directory.exists()
    assert tempfile.gettempdir() in str(left.directory)
