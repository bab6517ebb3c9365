"""Who may die, and what then: each port resolves once, nothing stays, and the next launch works."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

import pytest
import ray
from node_rig import until
from ray_rig import (
    DEADLINE,
    Nodes,
    ended,
    procs_of,
    python,
    rest_of,
    runtime_directory,
    shell,
    slowness,
    supervisors_of,
)
from victims import kill_guard_and_supervisor, kill_supervisor

from ray_launcher import (
    Failed,
    KillError,
    LaunchResult,
    LogsLostError,
    Placement,
    ProcLauncherError,
    RayProcLauncher,
    TerminateError,
)

#: Seconds, shorter than they are in earnest.
GRACE = 1.0
LEASE = 5.0

#: A leader with a child, and one that has escaped into a session of its own; all ignore TERM.
TREE = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.write(1, b"up\\n")
elif os.fork() == 0:
    os.write(1, b"up\\n")
time.sleep(9999)
"""
TREE_SIZE = 3


@pytest.fixture
def launcher(nodes: Nodes) -> Iterator[RayProcLauncher]:
    with RayProcLauncher(grace=GRACE, lease=LEASE) as launcher:
        yield launcher
        launcher.close(0)


def trees(launcher: RayProcLauncher, nodes: Nodes, *proc_ids: str) -> list[LaunchResult]:
    """Launched on node a, and up."""
    procs = [launcher.launch(proc_id, python(TREE, nodes.on("a"))) for proc_id in proc_ids]
    silent = dict.fromkeys(proc_ids, TREE_SIZE - 1)
    for chunk in launcher.follow(proc_ids):
        silent[chunk.proc_id] -= chunk.data.count(b"up")
        if not any(silent.values()):
            break
    until(lambda: len(procs_of(launcher.session)) == TREE_SIZE * len(procs), "who has forked twice has gone between")
    return procs


def left_when_told(launcher: RayProcLauncher, procs: list[LaunchResult]) -> list[dict[int, str]]:
    """What was left of the session at the moment each port resolved."""
    left: list[dict[int, str]] = []
    for proc in procs:
        proc.exit_port._future().add_done_callback(lambda _: left.append(procs_of(launcher.session)))
    return left


@pytest.mark.parametrize("kill", [kill_supervisor, kill_guard_and_supervisor])
def test_a_lost_supervisor_fails_its_procs_once_they_are_dead(
    launcher: RayProcLauncher, nodes: Nodes, kill: Callable[[str, str], None]
) -> None:
    procs = trees(launcher, nodes, "one", "two")
    elsewhere = launcher.launch("elsewhere", shell("echo up; exec sleep 9999", nodes.on("b")))
    assert next(launcher.logs("elsewhere", follow=True)) == "up"
    told = left_when_told(launcher, procs)
    kill(launcher.session, nodes.ids()["a"])
    for proc in procs:
        result = ended(proc.exit_port)
        assert result.kind == Failed("the node's supervisor was lost, and the proc with it")
        assert result.stderr_tail == []
    until(lambda: len(told) == len(procs), "every callback has run")
    assert all(words == "sleep 9999" for left in told for words in left.values()), told  # that is elsewhere
    again = launcher.launch("one", shell("exit 3", nodes.on("a")))
    assert ended(again.exit_port).returncode == 3
    assert not elsewhere.exit_port.done()


def test_a_node_whose_supervisor_cannot_start_again_fails_launches_until_it_can(
    launcher: RayProcLauncher, nodes: Nodes
) -> None:
    at_a = nodes.on("a")
    assert ended(launcher.launch("first", shell("exit", at_a)).exit_port).ok
    kill_supervisor(launcher.session, nodes.ids()["a"])
    until(lambda: not supervisors_of(launcher.session), "the guard is gone")
    stays = runtime_directory() / "of another session"  # so that the agent does not take the directory away
    stays.mkdir(parents=True)
    runtime_directory().chmod(0o755)
    try:
        for proc_id in ("second", "third"):
            kind = ended(launcher.launch(proc_id, shell("exit", at_a)).exit_port).kind
            assert isinstance(kind, Failed)
            assert "must be a directory of user" in kind.reason
    finally:
        runtime_directory().chmod(0o700)
        stays.rmdir()
    assert ended(launcher.launch("second", shell("exit", at_a)).exit_port).ok


def test_a_lost_spawner_closes_the_ports_and_everything_goes(launcher: RayProcLauncher, nodes: Nodes) -> None:
    [done] = trees(launcher, nodes, "done")
    launcher.kill("done")
    assert ended(done.exit_port).returncode == -signal.SIGKILL
    procs = trees(launcher, nodes, "one", "two")
    ray.kill(launcher._spawner)
    killed = time.monotonic()
    for proc in procs:
        kind = ended(proc.exit_port).kind
        assert isinstance(kind, Failed)
        assert kind.reason.startswith("exit port closed (")
    until(lambda: not procs_of(launcher.session), "its procs are gone", DEADLINE)
    assert time.monotonic() - killed < GRACE + 5 * slowness()
    until(lambda: not rest_of(launcher.session), "agents and supervisors are gone", DEADLINE)
    assert time.monotonic() - killed < GRACE + 15 * slowness()


def test_after_the_loss_of_the_spawner_each_verb_says_so(launcher: RayProcLauncher) -> None:
    assert ended(launcher.launch("done", shell("exit")).exit_port).ok
    ray.kill(launcher._spawner)
    kind = ended(launcher.launch("late", shell("exit")).exit_port).kind
    assert isinstance(kind, Failed)
    assert kind.reason.startswith("exit port closed (")
    until(lambda: launcher._mail.gone, "the launcher knows")
    with pytest.raises(TerminateError, match="the spawner: it is gone"):
        launcher.terminate("never launched", 1)
    with pytest.raises(KillError, match="the spawner: it is gone"):
        launcher.kill("never launched")
    with pytest.raises(ProcLauncherError, match="the spawner: it is gone"):
        launcher.logs("done")
    launcher.kill("done")
    launcher.terminate("late", 1)
    launcher.close()
    until(lambda: not rest_of(launcher.session), "agents and supervisors are gone", DEADLINE)


def test_a_lost_node_fails_its_procs_and_takes_them_along(launcher: RayProcLauncher, nodes: Nodes) -> None:
    with nodes.one_more({"zone": "doomed"}) as node_id:
        proc = launcher.launch("doomed", shell("echo up; exec sleep 9999", Placement(node_id=node_id)))
        assert next(launcher.logs("doomed", follow=True)) == "up"
    until(lambda: not procs_of(launcher.session), "its procs are gone", DEADLINE)
    result = ended(proc.exit_port)
    if isinstance(result.kind, Failed):
        assert node_id in result.kind.reason
    else:  # its last report was faster than the end of its agent
        assert result.returncode == -signal.SIGTERM
    with contextlib.suppress(LogsLostError):  # its agent may live a little longer
        assert list(launcher.logs("doomed")) == ["up"]
    kind = ended(launcher.launch("doomed", shell("exit", Placement(node_id=node_id))).exit_port).kind
    assert isinstance(kind, Failed)
    assert node_id in kind.reason
