"""`MonarchProcLauncher`, driven through Monarch's own endpoints: its options arrive, and each port answers once."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from leaks import leaving_nothing
from ray_rig import Nodes, ran

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("monarch") is None, reason="needs Monarch (pip install 'ray-proc-launcher[monarch]')"
    ),
    pytest.mark.timeout(200),  # a driver of Monarch's does all there is to do
]

DRIVER = Path(__file__).parents[1] / "support" / "monarch_launching.py"


@pytest.fixture(scope="module")
def facts(nodes: Nodes) -> dict[str, Any]:
    """What its driver has seen."""
    with leaving_nothing():
        output = ran(str(DRIVER), nodes.address, OF_DRIVER="yes")
    [found] = [line for line in output.splitlines() if line.startswith("{")]  # Monarch writes to stdout, too
    facts: dict[str, Any] = json.loads(found)
    return facts


def test_an_exit_code_arrives_with_the_last_lines_as_monarchs_own_result(facts: dict[str, Any]) -> None:
    result = facts["a_code"]
    assert (result["exit_code"], result["signal"], result["failed_reason"]) == (3, None, None)
    assert result["stderr_tail"] == ["one", "two"]


def test_the_strict_decoder_takes_monarchs_own_result(facts: dict[str, Any]) -> None:
    assert facts["a_code"]["decoded"] == "exited with code 3"
    assert facts["a_signal"]["decoded"] == "killed by SIGUSR1"


def test_a_signal_arrives(facts: dict[str, Any]) -> None:
    result = facts["a_signal"]
    assert (result["exit_code"], result["signal"], result["core_dumped"]) == (None, signal.SIGUSR1, False)


def test_program_arguments_and_arg0_arrive(facts: dict[str, Any]) -> None:
    assert facts["everything"]["argv0"] == "other"
    assert facts["everything"]["args"] == ["an argument"]


def test_arg0_is_the_last_part_of_the_program_by_default(facts: dict[str, Any]) -> None:
    assert facts["default_arg0"].startswith("python")


def test_what_monarch_hands_to_a_proc_arrives_in_its_environment(facts: dict[str, Any]) -> None:
    env = facts["everything"]["env"]
    assert env["HYPERACTOR_MESH_BOOTSTRAP_MODE"] == "payload"
    assert env["HYPERACTOR_PROCESS_NAME"] == "name"
    assert env["BOOTSTRAP_LOG_CHANNEL"] == "ipc://somewhere"
    assert env["OWN"] == "1"


def test_the_launchers_environment_is_inherited_and_not_the_nodes(facts: dict[str, Any]) -> None:
    assert facts["everything"]["env"]["OF_DRIVER"] == "yes"
    assert "OF_RAYLET" not in facts["everything"]["env"]


def test_the_token_of_the_cluster_is_not_inherited(facts: dict[str, Any]) -> None:
    assert "RAY_AUTH_TOKEN" in os.environ
    assert "RAY_AUTH_TOKEN" not in facts["everything"]["env"]


def test_an_environment_that_is_not_inherited_has_what_is_given(facts: dict[str, Any]) -> None:
    env = facts["a_clean_environment"]
    if env is None:
        pytest.skip("this release of Monarch has no inherit_env")
    assert env["OWN"] == "1"
    assert "OF_DRIVER" not in env
    assert "PATH" not in env


def test_variables_are_removed_by_name(facts: dict[str, Any]) -> None:
    if facts["a_clean_environment"] is None:
        pytest.skip("this release of Monarch has no env_remove")
    assert facts["removed"] == ["LEFT_B"]


def test_a_binding_arrives(facts: dict[str, Any]) -> None:
    assert facts["everything"]["cpus"] == 1


def test_procs_hold_what_the_params_say(facts: dict[str, Any]) -> None:
    assert facts["gpu"] in ("6", "7")


@pytest.mark.parametrize(
    "way, told",
    [
        ("no dict", "TypeError: params must be a dict or None"),
        ("unknown", "ValueError: params has 'sesion', which is none of address"),
        ("no placement", "TypeError: params['placement'] must be a Placement or a dict"),
        ("bad placement", "ValueError: Placement.num_gpus"),
    ],
)
def test_bad_params_are_refused(facts: dict[str, Any], way: str, told: str) -> None:
    assert facts["bad_params"][way].startswith(told)


def test_tail_lines_bounds_the_last_lines(facts: dict[str, Any]) -> None:
    assert facts["one_line"] == ["two"]
    assert facts["no_line"] == []


def test_output_that_is_not_wanted_is_discarded(facts: dict[str, Any]) -> None:
    assert facts["no_stdio"] == []


def test_kill_and_terminate_reach_the_proc(facts: dict[str, Any]) -> None:
    assert facts["killed"]["signal"] == signal.SIGKILL
    assert facts["terminated"]["signal"] == signal.SIGTERM


def test_terminate_ends_with_kill(facts: dict[str, Any]) -> None:
    assert facts["terminated_though_stubborn"]["signal"] == signal.SIGKILL


def test_a_program_that_is_missing_is_a_failure(facts: dict[str, Any]) -> None:
    assert "/no/such/program" in facts["missing"]["failed_reason"]


def test_options_that_are_refused_come_back_as_an_exception(facts: dict[str, Any]) -> None:
    assert "LaunchOptions.env['A=B']" in facts["refused"]["raised"]


def test_requests_that_make_no_sense_do_not_end_the_actor(facts: dict[str, Any]) -> None:
    assert facts["nonsense"] == 4


def test_fields_of_a_later_monarch_are_left_out_and_told_once(facts: dict[str, Any]) -> None:
    assert facts["later_fields"]["codes"] == [5, 5]
    told = facts["later_fields"]["log"]
    assert len(told) == 2
    assert "LaunchOptions.cgroup" in told[0]
    assert "proc_bind: gpunodebind" in told[1]


def test_an_exit_arrives_though_the_spawner_was_killed_meanwhile(facts: dict[str, Any]) -> None:
    assert facts["spawner_killed"]["exit_code"] == 6


def test_a_spawner_that_is_gone_for_good_is_a_failure(facts: dict[str, Any]) -> None:
    assert facts["spawner_gone"]["failed_reason"].startswith("exit port closed (")


def test_procs_end_with_the_actors_process_and_monarch_tells_the_caller(facts: dict[str, Any]) -> None:
    assert facts["actor_killed"] == "SupervisionError"


def test_procs_end_with_an_actor_that_is_stopped_and_their_ends_are_told(facts: dict[str, Any]) -> None:
    release = tuple(map(int, importlib.metadata.version("torchmonarch").split(".")[:2]))
    before_their_ends = release < (0, 6)  # these tell the caller of the stop itself
    assert ("SupervisionError" if before_their_ends else "signal=15") in facts["actor_stopped"]
