"""Restarts: what is started again, how often and when, and what is known of the starts before."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from node_rig import until
from ray_rig import DEADLINE, Nodes, ended, pid_of, procs_of, python, shell
from victims import restarted_spawner

from ray_launcher import Exited, Failed, LaunchOptions, Placement, ProcInfo, RayProcLauncher, Signaled
from ray_launcher.cluster.team import HEALTHY, delay_before

_names = itertools.count()
pytestmark = pytest.mark.usefixtures("all_free")


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    """A file that gets a line whenever a program of `counted` starts."""
    return tmp_path / "starts"


def counted(starts: Path, then: str, **more: Any) -> LaunchOptions:
    more = {"restart_delay": 0, **more}
    return shell(f"echo $RAY_LAUNCHER_RESTART_COUNT >> {starts}; {then}", **more)


def lines(starts: Path) -> list[str]:
    return starts.read_text().split() if starts.exists() else []


def name() -> str:
    return f"restarted {next(_names)}"


def info_of(launcher: RayProcLauncher, proc_id: str) -> ProcInfo:
    return {info.proc_id: info for info in launcher.procs()}[proc_id]


def waits(launcher: RayProcLauncher, proc_id: str) -> str:
    """Why it does, once it waits for its restart."""
    until(lambda: "restart" in (info_of(launcher, proc_id).waits_for or ""), "it is to be restarted", DEADLINE)
    return info_of(launcher, proc_id).waits_for or ""


def test_what_fails_is_started_again_until_it_does_not(shared: RayProcLauncher, starts: Path) -> None:
    opts = counted(starts, "test $RAY_LAUNCHER_RESTART_COUNT = 2", max_restarts=5)
    assert ended(shared.launch(name(), opts).exit_port).kind == Exited(0)
    assert lines(starts) == ["0", "1", "2"]


def test_the_result_is_that_of_the_last_attempt(shared: RayProcLauncher, starts: Path) -> None:
    opts = counted(starts, "exit 1$RAY_LAUNCHER_RESTART_COUNT", max_restarts=2)
    assert ended(shared.launch(name(), opts).exit_port).kind == Exited(12)
    assert lines(starts) == ["0", "1", "2"]


def test_what_ends_well_is_not_started_again(shared: RayProcLauncher, starts: Path) -> None:
    assert ended(shared.launch(name(), counted(starts, "exit 0", max_restarts=2)).exit_port).ok
    assert lines(starts) == ["0"]


def test_what_is_killed_by_its_user_is_not_started_again(shared: RayProcLauncher, starts: Path) -> None:
    proc = shared.launch(name(), counted(starts, "exec sleep 9999", max_restarts=2))
    until(lambda: lines(starts) == ["0"], "it runs", DEADLINE)
    shared.kill(proc.proc_id)
    assert ended(proc.exit_port).kind == Signaled(9)
    assert lines(starts) == ["0"]


def test_what_is_killed_by_others_is_started_again(shared: RayProcLauncher, starts: Path) -> None:
    proc = shared.launch(name(), counted(starts, "test $RAY_LAUNCHER_RESTART_COUNT = 1 || sleep 9999", max_restarts=1))
    os.kill(pid_of(shared, proc.proc_id), signal.SIGKILL)
    assert ended(proc.exit_port).ok


def test_a_program_that_cannot_be_started_is_not_tried_again(shared: RayProcLauncher) -> None:
    proc = shared.launch(name(), LaunchOptions(program="/no/such/program", max_restarts=3, restart_delay=300))
    assert ended(proc.exit_port).kind == Failed("/no/such/program: program not found on the node")


def test_one_that_waits_for_its_restart_says_why(shared: RayProcLauncher, starts: Path) -> None:
    proc = shared.launch(name(), counted(starts, "exit 3", max_restarts=2, restart_delay=200))
    assert waits(shared, proc.proc_id) == "restart 1 of 2 after 200 s: it exited with code 3"
    assert info_of(shared, proc.proc_id).state == "PENDING"


def test_one_that_waits_for_its_restart_can_be_ended(shared: RayProcLauncher, starts: Path) -> None:
    proc = shared.launch(name(), counted(starts, "exit 3", max_restarts=2, restart_delay=200))
    waits(shared, proc.proc_id)
    shared.terminate(proc.proc_id, 5)
    kind = ended(proc.exit_port).kind
    assert isinstance(kind, Failed)
    assert kind.reason == "ended on request before it was started again: it exited with code 3"
    assert lines(starts) == ["0"]


def test_nothing_is_held_between_two_attempts(shared: RayProcLauncher, starts: Path) -> None:
    opts = counted(starts, "exit 3", placement=Placement(num_cpus=2), max_restarts=1, restart_delay=200)
    proc_ids = [name() for _ in range(5)]  # more than there is room for at a time
    shared.launch_many(dict.fromkeys(proc_ids, opts))
    for proc_id in proc_ids:
        waits(shared, proc_id)


def test_earlier_attempts_are_remembered(shared: RayProcLauncher, starts: Path) -> None:
    opts = counted(starts, "seq 20 >&2; exit $((2 - $RAY_LAUNCHER_RESTART_COUNT))", max_restarts=2)
    proc = shared.launch(name(), opts)
    assert ended(proc.exit_port).ok
    info = info_of(shared, proc.proc_id)
    assert info.restarts == 2
    assert [attempt.result.kind for attempt in info.attempts] == [Exited(2), Exited(1)]
    assert [attempt.result.stderr_tail for attempt in info.attempts] == [list(map(str, range(11, 21)))] * 2
    assert all(attempt.exited_at and attempt.node_id for attempt in info.attempts)


def test_the_last_output_can_be_read_while_a_restart_is_waited_for(shared: RayProcLauncher, starts: Path) -> None:
    proc = shared.launch(name(), counted(starts, "echo out of luck; exit 1", max_restarts=1, restart_delay=200))
    waits(shared, proc.proc_id)
    assert list(shared.logs(proc.proc_id)) == ["out of luck"]


def test_a_follower_sees_every_attempt(shared: RayProcLauncher, starts: Path) -> None:
    opts = counted(starts, "echo attempt $RAY_LAUNCHER_RESTART_COUNT; exit 1", max_restarts=2)
    proc = shared.launch(name(), opts)
    assert list(shared.logs(proc.proc_id, follow=True)) == ["attempt 0", "attempt 1", "attempt 2"]


def test_who_attaches_hears_of_the_last_attempt(shared: RayProcLauncher, starts: Path) -> None:
    opts = counted(starts, "exit 1$RAY_LAUNCHER_RESTART_COUNT", max_restarts=1, restart_delay=1)
    proc = shared.launch(name(), opts)
    waits(shared, proc.proc_id)
    assert ended(shared.attach(proc.proc_id).exit_port).kind == Exited(11)


@pytest.mark.parametrize("moment", ["runs", "waits"])
def test_a_spawner_that_is_killed_goes_on_counting(launcher: RayProcLauncher, starts: Path, moment: str) -> None:
    then = f"test $RAY_LAUNCHER_RESTART_COUNT = 0 || until test -e {starts}.go; do sleep 0.1; done; exit 1"
    opts = counted(starts, then, max_restarts=1, restart_delay=1 if moment == "waits" else 0)
    proc = launcher.launch("counted", opts)
    if moment == "waits":
        waits(launcher, "counted")
    else:
        until(lambda: lines(starts) == ["0", "1"], "its second start", DEADLINE)
    restarted_spawner(launcher)
    Path(f"{starts}.go").touch()
    assert ended(proc.exit_port).kind == Exited(1)
    assert lines(starts) == ["0", "1"]
    assert [attempt.result.kind for attempt in info_of(launcher, "counted").attempts] == [Exited(1)]


def test_a_lost_node_is_replaced(launcher: RayProcLauncher, nodes: Nodes, starts: Path) -> None:
    placement = Placement(label_selector={"spare": "yes"})
    opts = counted(starts, "exec sleep 9999", placement=placement, max_restarts=1)
    with nodes.one_more({"spare": "yes"}) as first:
        proc = launcher.launch("moved", opts)
        until(lambda: lines(starts) == ["0"], "it runs", DEADLINE)
    with nodes.one_more({"spare": "yes"}) as second:
        until(lambda: lines(starts) == ["0", "1"], "it runs again", DEADLINE)
        until(lambda: info_of(launcher, "moved").state == "RUNNING", "the session knows", DEADLINE)
        info = info_of(launcher, "moved")
        assert ([each.node_id for each in info.attempts], info.node_id) == ([first], second)
        launcher.kill("moved")
        assert ended(proc.exit_port).kind == Signaled(9)
    until(lambda: not procs_of(launcher.session), "nothing is left", DEADLINE)


# -- gangs ----------------------------------------------------------------------------------------------------------


def test_a_gang_is_started_again_as_a_whole(shared: RayProcLauncher, starts: Path) -> None:
    opts = counted(starts, "test $RANK != 1 || test $TORCHELASTIC_RESTART_COUNT = 1", restart_delay=0)
    gang = shared.launch_gang(
        name(), opts, nnodes=2, nproc_per_node=2, max_restarts=2, restart_delay=0, fail_fast=False
    )
    assert gang.wait(DEADLINE).ok
    assert sorted(lines(starts)) == ["0"] * 4 + ["1"] * 4


def test_its_ranks_find_how_often_that_may_be(shared: RayProcLauncher) -> None:
    script = """if True:
        import json, os, sys
        json.dump({name: value for name, value in os.environ.items() if "RESTART" in name}, sys.stderr)
        sys.exit(os.environ["TORCHELASTIC_RESTART_COUNT"] == "0")
    """
    gang = shared.launch_gang(name(), python(script), max_restarts=3, restart_delay=0)
    [result] = gang.wait(DEADLINE).results
    assert json.loads("".join(result.stderr_tail or [])) == {
        "TORCHELASTIC_RESTART_COUNT": "1",
        "TORCHELASTIC_MAX_RESTARTS": "3",
        "RAY_LAUNCHER_RESTART_COUNT": "1",
    }


def test_rank_0_can_listen_at_the_new_master_port(shared: RayProcLauncher) -> None:
    script = """if True:
        import os, socket, sys
        socket.create_server(('', int(os.environ['MASTER_PORT'])))
        sys.exit(os.environ["TORCHELASTIC_RESTART_COUNT"] == "0")
    """
    gang = shared.launch_gang(name(), python(script), max_restarts=1, restart_delay=0)
    assert gang.wait(DEADLINE).ok


def test_a_gang_that_is_not_to_be_restarted_any_more_has_a_cause(shared: RayProcLauncher, starts: Path) -> None:
    def opts(rank: int) -> LaunchOptions:
        return counted(starts, "exit 3" if rank == 2 else "exec sleep 9999", placement=Placement(num_cpus=0.5))

    result = shared.launch_gang(name(), opts, nproc_per_node=3, max_restarts=1, restart_delay=0).wait(DEADLINE)
    assert (result.cause, result.results[2].kind) == (2, Exited(3))
    assert len(lines(starts)) <= 6


def test_a_gang_whose_rank_is_ended_by_its_user_is_not_restarted(shared: RayProcLauncher, starts: Path) -> None:
    gang = shared.launch_gang(name(), counted(starts, "exec sleep 9999"), nproc_per_node=2, max_restarts=3)
    until(lambda: len(lines(starts)) == 2, "both run", DEADLINE)
    gang.terminate(5)
    assert {each.kind for each in gang.wait(DEADLINE).results} == {Signaled(15)}
    assert len(lines(starts)) == 2


def test_a_gang_that_waits_for_its_restart_outlives_the_spawner(launcher: RayProcLauncher, starts: Path) -> None:
    then = "test $RANK = 0 || test $RAY_LAUNCHER_RESTART_COUNT = 1"
    gang = launcher.launch_gang("g", counted(starts, then), nproc_per_node=2, max_restarts=1, restart_delay=1)
    assert waits(launcher, "g/0") == "restart 1 of 1 after 1 s: rank 1 exited with code 1"
    restarted_spawner(launcher)
    assert gang.wait(DEADLINE).ok
    assert sorted(lines(starts)) == ["0", "0", "1", "1"]


# -- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lifetimes, seconds",
    [
        ([1], 10),
        ([1, 1], 20),
        ([1, 1, 1], 40),
        ([1] * 6, 300),
        ([1] * 5000, 300),
        ([1, 1, HEALTHY], 10),
        ([1, HEALTHY, 1], 10),
        ([HEALTHY, 1, 1], 20),
    ],
)
def test_each_wait_is_twice_as_long_until_an_attempt_was_healthy(lifetimes: list[float], seconds: float) -> None:
    assert delay_before(10, lifetimes) == seconds


@pytest.mark.parametrize(
    "field, value, error, text",
    [
        ("max_restarts", -1, ValueError, "LaunchOptions.max_restarts"),
        ("max_restarts", 1.5, TypeError, "LaunchOptions.max_restarts"),
        ("restart_delay", 301, ValueError, "LaunchOptions.restart_delay must be at most 300 seconds"),
        ("restart_delay", -1, ValueError, "LaunchOptions.restart_delay"),
    ],
)
def test_bad_options_are_refused(field: str, value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        LaunchOptions(program="true", **{field: value})


def test_the_options_of_a_gang_have_no_restarts_of_their_own(shared: RayProcLauncher) -> None:
    with pytest.raises(ValueError, match="give launch_gang"):
        shared.launch_gang("bad", shell("exit", max_restarts=1))
