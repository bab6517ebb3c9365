"""What `--dry-run` prints. Nothing is started, and no cluster is looked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ray_launcher.cli import running
from ray_launcher.cli.main import main

Plan = Callable[..., list[str]]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """The lines that a dry run with these options prints."""
    monkeypatch.setattr(running, "connect", lambda _: pytest.fail("it looks for a cluster"))

    def plan(*args: str) -> list[str]:
        with pytest.raises(SystemExit) as exited:
            main(["run", "--dry-run", *args])
        said = capsys.readouterr()
        assert (exited.value.code, said.err) == (0, "")
        return said.out.splitlines()

    return plan


def test_each_rank_is_told_with_its_node_its_program_and_what_it_holds(plan: Plan) -> None:
    lines = plan(
        "-j", "2x2", "--cwd", "/x", "--gpus", "1", "--memory", "16Gi", "--resources", "a=2", "--", "prog", "b c"
    )
    assert lines[0] == "gang run: 2 nodes with 2 procs each, SPREAD; the first failure ends the others"
    assert [line for line in lines[1:] if not line.startswith(" ")] == [
        "run/0  node 0",
        "run/1  node 0",
        "run/2  node 1",
        "run/3  node 1",
    ]
    for told in ("  runs   prog 'b c'", "  in     /x", "  holds  1 GPU, 2 a, 16.0 GiB memory"):
        assert lines.count(told) == 4


def test_a_gang_says_of_how_many_nodes_and_how_often(plan: Plan) -> None:
    lines = plan("--nnodes", "2:4", "--max-restarts", "3", "x")
    what = "gang run: 2 to 4 nodes with 1 proc each, SPREAD; the first failure ends the others"
    assert lines[0] == f"{what}; then all are started again, up to 3 times"
    assert "TORCHELASTIC_MAX_RESTARTS=3" in " ".join(lines)


def test_the_variables_of_a_rank_are_told_but_those_that_only_the_launch_decides(plan: Plan) -> None:
    told = [line.split() for line in plan("-j", "2x2", "x") if line.startswith("  ranks  ")]
    assert {"RANK=3", "LOCAL_RANK=1", "WORLD_SIZE=4", "GROUP_RANK=1", "RAY_LAUNCHER_GANG_ID=run"} <= set(told[3])
    assert "MASTER_ADDR=<known" in told[3]


@pytest.mark.parametrize("many", [["-n", "2"], ["-j", "1x2"], ["-j", "1xgpu"]])
def test_of_variables_that_the_user_sets_the_names_are_told_and_never_the_values(plan: Plan, many: list[str]) -> None:
    lines = plan(*many, "-e", "TOKEN=s=cret", "-e", "LR=0.1234", "x")
    assert "  env    TOKEN LR" in lines
    assert not any("cret" in line or "0.1234" in line for line in lines)


def test_procs_that_are_no_gang_are_told_with_their_rank(plan: Plan) -> None:
    lines = plan("-n", "2", "x")
    assert lines[0] == "2 procs; when one fails, the others run on"
    assert "  ranks  RAY_LAUNCHER_RANK=1 RAY_LAUNCHER_NPROCS=2" in lines
    assert lines.count("  holds  nothing") == 2


def test_where_procs_may_go_and_their_limits_are_told(plan: Plan) -> None:
    lines = plan("--label", "zone=!a", "--node", "10.0.0.2", "--start-timeout", "5", "--umask", "027", "x")
    assert "  where  node 10.0.0.2, zone=!a, within 5 s" in lines
    assert "  also   umask=0o27" in lines


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_how_many_there_are_per_node_is_left_to_the_cluster_and_that_is_said(plan: Plan, kind: str) -> None:
    lines = plan("-j", f"2x{kind}", "--no-fail-fast", "x")
    assert "2 nodes with as many procs each as" in lines[0]
    assert "the others run on. Only the cluster tells" in lines[0]
    assert f"  holds  1 {kind.upper()}" in lines
