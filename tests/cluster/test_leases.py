"""Leases: what a proc holds of the cluster, for how long, which GPUs it sees, and what it waits for."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import ray
from node_rig import until
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray_rig import ALL, DEADLINE, Nodes, ended, free, shell
from victims import Victims, restarted_spawner

from ray_launcher import Failed, LaunchResult, Placement, RayProcLauncher, Signaled

SEEN = "echo GPUS=$CUDA_VISIBLE_DEVICES >&2"
STAY = "exec sleep 9999"
_names = itertools.count()
pytestmark = pytest.mark.usefixtures("all_free")


def launch(
    launcher: RayProcLauncher, script: str, env: dict[str, str] | None = None, **placement: object
) -> LaunchResult:
    opts = shell(script, Placement(**placement), env=env or {})  # type: ignore[arg-type]
    return launcher.launch(f"leased {next(_names)}", opts)


def on(nodes: Nodes, zone: str) -> dict[str, Any]:
    return {"node_id": nodes.ids()[zone]}


def gpus(proc: LaunchResult) -> str:
    """What it saw, once it has ended."""
    result = ended(proc.exit_port)
    assert result.ok, result
    [line] = result.stderr_tail or []
    return line.removeprefix("GPUS=")


def state(launcher: RayProcLauncher, proc: LaunchResult) -> str:
    return next(info.state for info in launcher.procs() if info.proc_id == proc.proc_id)


def waits_for(launcher: RayProcLauncher, proc: LaunchResult) -> str:
    """The reason, once there is one."""
    until(lambda: _reason(launcher, proc) is not None, "it says what it waits for", DEADLINE)
    return str(_reason(launcher, proc))


def _reason(launcher: RayProcLauncher, proc: LaunchResult) -> str | None:
    return next(info.waits_for for info in launcher.procs() if info.proc_id == proc.proc_id)


def running(launcher: RayProcLauncher, proc: LaunchResult) -> None:
    until(lambda: state(launcher, proc) == "RUNNING", "it runs", DEADLINE)


def test_what_a_proc_holds_is_taken_from_the_cluster(shared: RayProcLauncher) -> None:
    proc = launch(shared, STAY, num_cpus=1.5, num_gpus=1)
    running(shared, proc)
    until(lambda: free() == {"CPU": 2.5, "GPU": 3}, "Ray knows of it", DEADLINE)


def test_it_is_back_when_the_proc_has_ended(shared: RayProcLauncher) -> None:
    assert ended(launch(shared, "exit", num_cpus=1, num_gpus=2).exit_port).ok  # and see `_all_free`


def test_a_proc_sees_the_gpus_that_ray_has_given_it(shared: RayProcLauncher, nodes: Nodes) -> None:
    with_all = launch(shared, SEEN, num_gpus=2, node_id=nodes.ids()["a"])
    assert sorted(gpus(with_all).split(",")) == ["6", "7"]  # the raylet's own


def test_no_two_procs_share_a_gpu(shared: RayProcLauncher, nodes: Nodes) -> None:
    first = launch(shared, f"{SEEN}; {STAY}", num_gpus=1, node_id=nodes.ids()["a"])
    seen = next(shared.logs(first.proc_id, "stderr", follow=True)).removeprefix("GPUS=")
    second = gpus(launch(shared, SEEN, num_gpus=1, node_id=nodes.ids()["a"]))
    assert sorted([seen, second]) == ["6", "7"]


def test_shares_of_one_gpu_go_to_the_same(shared: RayProcLauncher, nodes: Nodes) -> None:
    procs = [launch(shared, SEEN, num_gpus=0.5, node_id=nodes.ids()["a"]) for _ in range(2)]
    assert len(set(map(gpus, procs))) == 1


def test_gpus_are_not_those_of_a_ray_task_on_the_node(shared: RayProcLauncher, nodes: Nodes) -> None:
    class Holder:
        def ids(self) -> list[str]:
            found = ray.get_runtime_context().get_accelerator_ids()["GPU"]
            return [str(each) for each in found]

    affinity = NodeAffinitySchedulingStrategy(nodes.ids()["a"], soft=False)
    holder: Any = ray.remote(Holder).options(num_cpus=0, num_gpus=1, scheduling_strategy=affinity).remote()
    try:
        taken = ray.get(holder.ids.remote())
        assert [gpus(launch(shared, SEEN, num_gpus=1, node_id=nodes.ids()["a"])), *taken] in (["6", "7"], ["7", "6"])
    finally:
        ray.kill(holder)


def test_the_callers_variables_cannot_widen_what_a_proc_sees(shared: RayProcLauncher, nodes: Nodes) -> None:
    proc = launch(shared, SEEN, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, num_gpus=1, node_id=nodes.ids()["a"])
    assert gpus(proc) in ("6", "7")


def test_a_lease_on_cpus_shows_no_gpu(shared: RayProcLauncher) -> None:
    assert gpus(launch(shared, SEEN, num_cpus=1)) == ""


def test_inherit_shows_what_the_raylet_has(shared: RayProcLauncher) -> None:
    assert gpus(launch(shared, SEEN, num_gpus=1, gpu_mask="inherit")) == "6,7"


def test_a_proc_waits_for_what_others_hold(shared: RayProcLauncher) -> None:
    procs = [launch(shared, STAY, num_cpus=2) for _ in range(3)]
    states = ["PENDING", "RUNNING", "RUNNING"]
    until(lambda: sorted(state(shared, proc) for proc in procs) == states, "one of them waits", DEADLINE)


def test_a_busy_cluster_is_named_with_who_holds_it(shared: RayProcLauncher, nodes: Nodes) -> None:
    holder = launch(shared, STAY, num_gpus=1.0, node_id=nodes.ids()["b"])
    running(shared, holder)
    reason = waits_for(shared, launch(shared, "exit", num_gpus=2, node_id=nodes.ids()["b"]))
    assert "needs GPU 2" in reason
    assert f"has 1 of 2 GPU free; held by {holder.proc_id}" in reason


def test_what_no_node_can_hold_is_told_apart(shared: RayProcLauncher) -> None:
    reason = waits_for(shared, launch(shared, "exit", num_cpus=64))
    assert "needs CPU 64; no node is that large" in reason


def test_labels_that_no_node_has_are_named(shared: RayProcLauncher) -> None:
    reason = waits_for(shared, launch(shared, "exit", num_cpus=1, label_selector={"zone": "nowhere"}))
    assert "no node has them" in reason


def test_a_launch_that_holds_nothing_says_which_labels_it_waits_for(shared: RayProcLauncher) -> None:
    reason = waits_for(shared, launch(shared, "exit", label_selector={"zone": "nowhere"}))
    assert reason == "needs a node with the labels {'zone': 'nowhere'}"


def test_after_the_timeout_the_launch_fails_with_the_reason(shared: RayProcLauncher) -> None:
    kind = ended(launch(shared, "exit", num_cpus=64, timeout=0.5).exit_port).kind
    assert isinstance(kind, Failed)
    assert "not there within 0.5 s: needs CPU 64; no node is that large" in kind.reason


def test_a_timeout_of_zero_takes_what_is_free(shared: RayProcLauncher) -> None:
    assert ended(launch(shared, "exit", num_cpus=1, timeout=0).exit_port).ok


@pytest.mark.parametrize("verb", ["terminate", "kill"])
def test_one_that_is_ended_while_it_waits_never_starts(shared: RayProcLauncher, verb: str) -> None:
    proc = launch(shared, "exit", num_cpus=64)
    waits_for(shared, proc)
    shared.terminate(proc.proc_id, 1) if verb == "terminate" else shared.kill(proc.proc_id)
    assert ended(proc.exit_port).kind == Failed("ended on request before it was started")


def test_the_next_in_line_gets_what_is_free_again(shared: RayProcLauncher) -> None:
    holders = [launch(shared, STAY, num_cpus=2) for _ in range(2)]
    for holder in holders:
        running(shared, holder)
    waiting = launch(shared, "exit", num_cpus=2)
    waits_for(shared, waiting)
    shared.kill(holders[0].proc_id)
    assert ended(waiting.exit_port).ok


def test_an_unknown_node_fails_at_once(shared: RayProcLauncher) -> None:
    kind = ended(launch(shared, "exit", num_cpus=1, node_id="ab" * 28).exit_port).kind
    assert isinstance(kind, Failed)
    assert "no living node has the id" in kind.reason


def test_a_resource_of_the_users_own_is_held(launcher: RayProcLauncher, nodes: Nodes) -> None:
    with nodes.one_more({"zone": "own"}, resources={"widget": 1}) as node_id:
        launched = launch(launcher, "exit", resources={"widget": 1})
        assert ended(launched.exit_port).ok
        assert next(info.node_id for info in launcher.procs() if info.proc_id == launched.proc_id) == node_id
        launcher.close(0)


def test_a_lease_outlives_the_spawner(launcher: RayProcLauncher) -> None:
    proc = launch(launcher, STAY, num_cpus=2)
    running(launcher, proc)
    restarted_spawner(launcher)
    assert free()["CPU"] == 2
    launcher.kill(proc.proc_id)
    assert ended(proc.exit_port).kind == Signaled(9, core_dumped=False)  # and see `_all_free`


def test_one_that_waits_goes_on_waiting_when_the_spawner_is_killed(launcher: RayProcLauncher) -> None:
    holders = [launch(launcher, STAY, num_cpus=2) for _ in range(2)]
    for holder in holders:
        running(launcher, holder)
    waiting = launch(launcher, "exit", num_cpus=2)
    waits_for(launcher, waiting)
    restarted_spawner(launcher)
    launcher.kill(holders[0].proc_id)
    assert ended(waiting.exit_port).ok


def test_close_returns_what_is_held_and_what_is_waited_for(launcher: RayProcLauncher) -> None:
    running(launcher, launch(launcher, STAY, num_cpus=2))
    waits_for(launcher, launch(launcher, STAY, num_cpus=64))
    launcher.close(0)
    until(lambda: free() == ALL, "all resources are back", DEADLINE)


def test_a_spawner_that_is_gone_for_good_leaves_no_lease(launcher: RayProcLauncher) -> None:
    running(launcher, launch(launcher, STAY, num_cpus=2))
    waits_for(launcher, launch(launcher, STAY, num_cpus=64))
    ray.kill(launcher._spawner)  # and see `_all_free` and the check for placement groups


def test_a_lease_lasts_until_nothing_is_left_of_the_tree(shared: RayProcLauncher, nodes: Nodes, tmp_path: Path) -> None:
    """What outlives the leader gets TERM, and two seconds later KILL; this one does not heed the first."""
    pid = tmp_path / "pid"
    helper = f'trap "" TERM; echo $$ > {pid}.draft; mv {pid}.draft {pid}; while :; do sleep 0.05; done'
    proc = launch(shared, f"sh -c '{helper}' & while [ ! -e {pid} ]; do sleep 0.01; done", num_cpus=2, **on(nodes, "a"))
    next_one = launch(
        shared, f"while [ ! -e {pid} ]; do exit 1; done; ! kill -0 $(cat {pid})", num_cpus=2, **on(nodes, "a")
    )
    assert ended(proc.exit_port).ok
    assert ended(next_one.exit_port).ok  # it has not found the helper any more


VENDORS = {
    "TPU": "TPU_VISIBLE_CHIPS",
    "neuron_cores": "NEURON_RT_VISIBLE_CORES",
    "HPU": "HABANA_VISIBLE_MODULES",
    "NPU": "ASCEND_RT_VISIBLE_DEVICES",
}


def test_other_vendors_accelerators_are_shown_by_their_own_variables(launcher: RayProcLauncher, nodes: Nodes) -> None:
    script = "; ".join(f"echo ${{{variable}-unset}} >&2" for variable in VENDORS.values())
    with nodes.one_more({"zone": "vendors"}, resources=dict.fromkeys(VENDORS, 4)) as node_id:
        for held in VENDORS:
            proc = launch(launcher, script, resources={held: 2}, node_id=node_id)
            seen = dict(zip(VENDORS, ended(proc.exit_port).stderr_tail or [], strict=True))
            ids = seen.pop(held).split(",")
            assert len(set(ids) & {"0", "1", "2", "3"}) == 2, (held, ids)
            assert set(seen.values()) <= {"unset", ""}, (held, seen)


@pytest.mark.parametrize("victim", ["agent", "agent and spawner"])
def test_a_lease_outlives_who_made_it(launcher: RayProcLauncher, nodes: Nodes, victim: str) -> None:
    proc = launch(launcher, STAY, num_cpus=1, num_gpus=1, node_id=nodes.ids()["a"])
    running(launcher, proc)
    Victims(launcher, nodes.ids()["a"]).strike(victim)
    assert gpus(launch(launcher, SEEN, num_gpus=1, node_id=nodes.ids()["a"])) in ("6", "7")
    until(lambda: free() == {"CPU": 3, "GPU": 3}, "it is held", DEADLINE)
    launcher.kill(proc.proc_id)
    assert ended(proc.exit_port).kind == Signaled(9)
    until(lambda: free() == ALL, "it is returned", DEADLINE)


@pytest.mark.parametrize("victim", ["supervisor", "guard", "guard and supervisor", "agent, guard and supervisor"])
def test_a_lease_ends_with_the_supervisor(launcher: RayProcLauncher, nodes: Nodes, victim: str) -> None:
    proc = launch(launcher, STAY, num_cpus=1, num_gpus=1, node_id=nodes.ids()["a"])
    running(launcher, proc)
    Victims(launcher, nodes.ids()["a"]).strike(victim)
    assert isinstance(ended(proc.exit_port).kind, Failed | Signaled)
    until(lambda: free() == ALL, "it is returned", DEADLINE)
