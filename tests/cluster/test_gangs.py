"""Gangs: where ranks sit, what they find in their environment, and how they end together."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from node_rig import until
from ray_rig import DEADLINE, Nodes, free, living, python, shell
from victims import restarted_spawner

from ray_launcher import Exited, Failed, Gang, Placement, RayProcLauncher, Signaled

STAY = shell("exec sleep 9999")
_ENVIRON = "import json, os, sys; json.dump(dict(os.environ), sys.stderr)"
_names = itertools.count()
pytestmark = pytest.mark.usefixtures("all_free")


def name() -> str:
    return f"gang {next(_names)}"


def environs(launcher: RayProcLauncher, placement: Placement | None = None, **shape: Any) -> list[dict[str, str]]:
    """What each rank of a gang finds."""
    result = launcher.launch_gang(name(), python(_ENVIRON, placement), **shape).wait(DEADLINE)
    assert result.ok, result
    return [json.loads("\n".join(each.stderr_tail or [])) for each in result.results]


def states(launcher: RayProcLauncher, gang: Gang) -> list[str]:
    return [info.state for info in launcher.procs() if info.gang_id == gang.gang_id]


def runs(launcher: RayProcLauncher, gang: Gang) -> None:
    until(lambda: set(states(launcher, gang)) == {"RUNNING"}, "all ranks run", DEADLINE)


def test_each_rank_finds_what_torchrun_sets(shared: RayProcLauncher) -> None:
    found = environs(shared, nnodes=2, nproc_per_node=2)
    for rank, environ in enumerate(found):
        wanted = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % 2),
            "WORLD_SIZE": "4",
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": str(rank // 2),
            "GROUP_WORLD_SIZE": "2",
            "ROLE_RANK": str(rank),
            "ROLE_WORLD_SIZE": "4",
            "ROLE_NAME": "default",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_MAX_RESTARTS": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "False",
            "RAY_LAUNCHER_RANK": str(rank),
            "RAY_LAUNCHER_NPROCS": "4",
        }
        assert {key: environ[key] for key in wanted} == wanted


def test_all_ranks_are_told_the_same_master(shared: RayProcLauncher) -> None:
    found = environs(shared, nnodes=2, nproc_per_node=2)
    assert len({(each["MASTER_ADDR"], each["MASTER_PORT"], each["TORCHELASTIC_RUN_ID"]) for each in found}) == 1


def test_rank_0_can_listen_at_the_master_port(shared: RayProcLauncher) -> None:
    listen = "import os, socket; socket.create_server(('', int(os.environ['MASTER_PORT'])))"
    gang = shared.launch_gang(name(), lambda rank: python(listen) if rank == 0 else shell("exit"), nproc_per_node=2)
    assert gang.wait(DEADLINE).ok


def test_ranks_are_contiguous_per_node(shared: RayProcLauncher) -> None:
    gang = shared.launch_gang(name(), shell("exit"), nnodes=2, nproc_per_node=3)
    assert gang.wait(DEADLINE).ok
    on = {info.rank: info.node_id for info in shared.procs() if info.gang_id == gang.gang_id}
    assert [on[rank] == on[rank // 3 * 3] for rank in range(6)] == [True] * 6
    assert on[0] != on[3]


def test_pack_puts_all_on_one_node(shared: RayProcLauncher) -> None:
    gang = shared.launch_gang(name(), shell("exit"), nnodes=2, nproc_per_node=2, strategy="STRICT_PACK")
    assert gang.wait(DEADLINE).ok
    assert len({info.node_id for info in shared.procs() if info.gang_id == gang.gang_id}) == 1


def test_options_may_depend_on_the_rank(shared: RayProcLauncher) -> None:
    gang = shared.launch_gang(name(), lambda rank: shell(f"exit {rank}"), nproc_per_node=3, fail_fast=False)
    assert [each.kind for each in gang.wait(DEADLINE).results] == [Exited(0), Exited(1), Exited(2)]


def test_a_rank_sees_the_gpus_of_its_node(shared: RayProcLauncher) -> None:
    found = environs(shared, Placement(num_gpus=1), nnodes=2, nproc_per_node=2)
    assert [sorted(each["CUDA_VISIBLE_DEVICES"].split(",")) for each in found] == [["6", "7"]] * 4


def test_a_rank_sees_only_its_own_gpus_if_asked_for(shared: RayProcLauncher) -> None:
    found = environs(shared, Placement(num_gpus=1, gpu_mask="proc"), nnodes=2, nproc_per_node=2)
    seen = [each["CUDA_VISIBLE_DEVICES"] for each in found]
    assert sorted(seen[:2]) == sorted(seen[2:]) == ["6", "7"]


def test_as_many_ranks_as_gpus(shared: RayProcLauncher, nodes: Nodes) -> None:
    zone = Placement(label_selector={"zone": "in(a,b)"})
    assert len(environs(shared, zone, nnodes=2, nproc_per_node="gpu")) == 4


def test_the_first_failure_ends_the_others(shared: RayProcLauncher) -> None:
    gang = shared.launch_gang(name(), lambda rank: shell("exit 3") if rank == 2 else STAY, nnodes=2, nproc_per_node=2)
    result = gang.wait(DEADLINE)
    others = [each.kind for rank, each in enumerate(result.results) if rank != 2]
    assert all(isinstance(kind, Failed) or kind == Signaled(15, core_dumped=False) for kind in others), others


def test_the_cause_is_the_rank_that_failed_first(shared: RayProcLauncher) -> None:
    later = shell("trap 'exit 7' TERM; sleep 9999 & wait")  # its failure follows from that of rank 2
    gang = shared.launch_gang(name(), lambda rank: shell("exit 3") if rank == 2 else later, nnodes=2, nproc_per_node=2)
    result = gang.wait(DEADLINE)
    assert result.cause == 2
    assert str(result) == "rank 2 of 4 exited with code 3"


def test_the_cause_is_known_after_the_session_has_ended(launcher: RayProcLauncher) -> None:
    gang = launcher.launch_gang(name(), STAY, nproc_per_node=2)
    runs(launcher, gang)
    launcher.close(0)
    assert gang.wait(DEADLINE).cause in (0, 1)


def test_without_fail_fast_the_others_run_on(shared: RayProcLauncher) -> None:
    gang = shared.launch_gang(name(), lambda rank: STAY if rank else shell("exit 3"), nproc_per_node=2, fail_fast=False)
    assert gang.ranks[0].exit_port.wait(DEADLINE).kind == Exited(3)
    until(lambda: "RUNNING" in states(shared, gang), "rank 1 runs", DEADLINE)
    gang.kill()
    assert gang.wait(DEADLINE).results[1].kind == Signaled(9, core_dumped=False)


def test_terminate_ends_all(shared: RayProcLauncher) -> None:
    gang = shared.launch_gang(name(), STAY, nnodes=2, nproc_per_node=2)
    runs(shared, gang)
    gang.terminate(5)
    assert {each.kind for each in gang.wait(DEADLINE).results} == {Signaled(15, core_dumped=False)}


def test_a_gang_holds_the_resources_of_all_its_ranks(shared: RayProcLauncher) -> None:
    opts = shell("exec sleep 9999", Placement(num_cpus=0.5, num_gpus=1))
    runs(shared, shared.launch_gang(name(), opts, nnodes=2, nproc_per_node=2))
    until(lambda: free() == {"CPU": 2, "GPU": 0}, "Ray knows of it", DEADLINE)


def test_nothing_starts_before_there_is_room_for_all(shared: RayProcLauncher) -> None:
    opts = shell("exec sleep 9999", Placement(num_cpus=2, timeout=1))
    gang = shared.launch_gang(name(), opts, nnodes=3)
    reasons = {each.kind.reason for each in gang.wait(DEADLINE).results if isinstance(each.kind, Failed)}
    assert len(reasons) == 1
    assert "needs CPU 2 3 times at once; the cluster has room for no more than 2" in reasons.pop()


def test_a_gang_that_waits_can_be_killed(shared: RayProcLauncher) -> None:
    gang = shared.launch_gang(name(), shell("exit", Placement(num_cpus=2)), nnodes=3)
    until(lambda: set(states(shared, gang)) == {"PENDING"}, "it waits", DEADLINE)
    gang.kill()
    assert all(isinstance(each.kind, Failed) for each in gang.wait(DEADLINE).results)


def test_a_gang_outlives_the_spawner_and_still_fails_together(launcher: RayProcLauncher) -> None:
    opts = shell("exec sleep 9999", Placement(num_cpus=1))
    gang = launcher.launch_gang(name(), opts, nnodes=2, nproc_per_node=2)
    runs(launcher, gang)
    restarted_spawner(launcher)
    launcher.kill(gang.ranks[1].proc_id)
    result = gang.wait(DEADLINE)
    assert result.cause == 1
    assert [each.kind for rank, each in enumerate(result.results) if rank != 1] == [Signaled(15, core_dumped=False)] * 3


# -- of a flexible size ---------------------------------------------------------------------------------------------


def test_a_gang_takes_as_many_nodes_as_there_are(shared: RayProcLauncher) -> None:
    opts = python("import os, sys; sys.exit(os.environ['WORLD_SIZE'] != '4')", Placement(num_cpus=1))
    result = shared.launch_gang(name(), opts, nnodes=(1, 3), nproc_per_node=2).wait(DEADLINE)
    assert result.ok
    assert len(result.results) == 4


def test_a_rank_that_is_not_needed_says_so(shared: RayProcLauncher) -> None:
    opts = shell("exec sleep 9999", Placement(num_cpus=2))
    gang = shared.launch_gang(name(), opts, nnodes=(1, 3))
    until(lambda: states(shared, gang) == ["RUNNING", "RUNNING", "PENDING"], "two ranks run", DEADLINE)
    shared.kill(gang.ranks[0].proc_id)
    gang.wait(DEADLINE)
    reason = gang.ranks[2].exit_port.wait(DEADLINE).kind
    assert reason == Failed("not needed: the gang runs on 2 of at most 3 nodes")


def test_it_waits_for_the_fewest(shared: RayProcLauncher) -> None:
    opts = shell("exit", Placement(num_cpus=2, timeout=1))
    gang = shared.launch_gang(name(), opts, nnodes=(3, 4))
    assert all(isinstance(each.kind, Failed) for each in gang.wait(DEADLINE).results)


def test_it_grows_and_shrinks_when_it_is_restarted(shared: RayProcLauncher) -> None:
    script = "test $TORCHELASTIC_RESTART_COUNT = 1 && test $WORLD_SIZE = 2"
    with living(shared, name(), shell("exec sleep 9999", Placement(num_cpus=2))):
        gang = shared.launch_gang(
            name(), shell(script, Placement(num_cpus=2)), nnodes=(1, 2), max_restarts=1, restart_delay=3
        )
        until(lambda: any(info.attempts for info in shared.procs() if info.gang_id == gang.gang_id), "one", DEADLINE)
    result = gang.wait(DEADLINE)
    assert result.ok
    assert len(result.results) == 2


def test_a_flexible_gang_outlives_the_spawner(launcher: RayProcLauncher) -> None:
    gang = launcher.launch_gang(name(), shell("exec sleep 9999", Placement(num_cpus=2)), nnodes=(1, 3))
    until(lambda: states(launcher, gang) == ["RUNNING", "RUNNING", "PENDING"], "two ranks run", DEADLINE)
    restarted_spawner(launcher)
    launcher.kill(gang.ranks[0].proc_id)
    assert len(gang.wait(DEADLINE).results) == 2


@pytest.mark.parametrize(
    "changes, error, text",
    [
        ({"nnodes": 0}, ValueError, "nnodes must be 1 or more"),
        ({"nnodes": 1.5}, TypeError, "nnodes must be a whole number"),
        ({"nnodes": (2, 1)}, ValueError, r"nnodes must be \(fewest, most\)"),
        ({"nnodes": (1, 2, 3)}, ValueError, r"nnodes must be a number or \(fewest, most\)"),
        ({"nnodes": (0, 2)}, ValueError, r"nnodes\[0\] must be 1 or more"),
        ({"nproc_per_node": True}, TypeError, "nproc_per_node must be a whole number"),
        ({"nproc_per_node": "tpu"}, ValueError, "nproc_per_node must be a number, 'gpu' or 'cpu'"),
        ({"nproc_per_node": 10**6}, ValueError, "at most 100,000"),
        ({"strategy": "SCATTER"}, ValueError, "strategy must be one of"),
        ({"fail_fast": 1}, TypeError, "fail_fast must be True or False"),
        ({"grace": -1}, ValueError, "grace must not be negative"),
        ({"opts": "true"}, TypeError, "opts must be a LaunchOptions"),
        ({"opts": lambda _: None}, TypeError, r"opts\(0\) must be a LaunchOptions"),
        ({"gang_id": ""}, ValueError, "proc_id is empty"),
        ({"opts": shell("exit", env={"RANK": "7"})}, ValueError, r"env\['RANK'\] is set by the gang itself"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_refused_at_the_call(
    shared: RayProcLauncher, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    arguments = {"gang_id": "bad", "opts": shell("exit"), **changes}
    with pytest.raises(error, match=text):
        shared.launch_gang(**arguments)


def test_one_placement_for_all(shared: RayProcLauncher) -> None:
    with pytest.raises(ValueError, match=r"opts\(1\)\.placement differs"):
        shared.launch_gang("bad", lambda rank: shell("exit", Placement(num_cpus=rank)), nproc_per_node=2)
