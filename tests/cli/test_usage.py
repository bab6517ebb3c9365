"""What the command makes of its options, and what it says about bad ones. Nothing is started."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import ray_launcher
from ray_launcher import LaunchOptions, Placement, ProcBind
from ray_launcher.cli import run
from ray_launcher.cli.gangs import Shape
from ray_launcher.cli.jobs import AGang, Several, Target
from ray_launcher.cli.main import main
from ray_launcher.cli.terminal import Feed


class Started:
    """Stands in for a run: notes what would be started."""

    job: Several | AGang
    launches: Mapping[str, LaunchOptions]  # for several
    address: str | None
    grace: float
    feed: Feed | None

    def __init__(self, job: Several | AGang, target: Target, feed: Feed | None) -> None:
        Started.feed = feed
        Started.job, Started.address, Started.grace = job, target.address, target.grace
        Started.launches = job.launches if isinstance(job, Several) else {}

    def execute(self) -> int:
        return 42


Call = Callable[..., int]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs the command line in this process; the exit code."""
    monkeypatch.setattr(run, "Run", Started)

    def call(*args: str) -> int:
        with pytest.raises(SystemExit) as exited:
            main(args)
        assert isinstance(exited.value.code, int)
        return exited.value.code

    return call


@pytest.mark.parametrize(
    "args, named, way_out",
    [
        (["-n", "0", "ls"], "'-n'", "x>=1"),
        (["-n", "two", "ls"], "'-n'", "integer"),
        (["--env", "=x", "ls"], "'--env'", "NAME=VALUE"),
        (["--env", "NOT_SET_ANYWHERE", "ls"], "'--env'", "write NOT_SET_ANYWHERE=VALUE"),
        (["--env-remove", "", "ls"], "'--env-remove'", "empty"),
        (["-i", "-n", "2", "ls"], "-i, -t and --stdin are for one proc", "leave them out"),
        (["-i", "-j", "1x1", "ls"], "-i, -t and --stdin are for one proc", "leave them out"),
        (["-i", "--max-restarts", "1", "ls"], "-i, -t and --stdin are for one proc", "leave them out"),
        (["-i", "--stdin", __file__, "ls"], "--stdin gives it a file", "leave out -i and -t"),
        (["-it", "ls"], "-t is for a terminal", "leave -t out"),
        (["--stdin", "/nonexistent", "ls"], "'--stdin'", "does not exist"),
        (["--cwd", "", "ls"], "'--cwd'", "empty"),
        (["--grace", "-1", "ls"], "'--grace'", "0 or more"),
        (["--grace", "nan", "ls"], "'--grace'", "0 or more"),
        (["--grace", "soon", "ls"], "'--grace'", "0 or more"),
        (["--name", "a/b", "ls"], "'--name'", "letters, digits"),
        (["--address", "", "ls"], "'--address'", "empty"),
        (["--time-limit", "0", "ls"], "'--time-limit'", "1.5h"),
        (["--time-limit", "1d", "ls"], "'--time-limit'", "1.5h"),
        (["--time-limit", "9" * 400, "ls"], "'--time-limit'", "1.5h"),
        (["--signal", "USR1", "--time-limit", "9", "ls"], "'--signal'", "USR1@60"),
        (["--signal", "NOPE@1", "--time-limit", "9", "ls"], "'--signal'", "SIGUSR1"),
        (["--signal", "99@1", "--time-limit", "9", "ls"], "pre_kill_signal[0]", "from 1 to 64"),
        (["--signal", "USR1@9", "--time-limit", "9", "ls"], "pre_kill_signal[1]", "less than the time limit"),
        (["--signal", "USR1@9", "ls"], "'--signal'", "give --time-limit too"),
        (["--bind", "0-3", "ls"], "'--bind'", "cpus=LIST"),
        (["--bind", "cpu=0-3", "ls"], "'--bind'", "cpus=LIST"),
        (["--bind", "cpus=all", "ls"], "ProcBind.cpus", "0-3,8"),
        (["--bind", "cpus=0", "--bind", "cpus=1", "ls"], "'--bind'", "give it once"),
        (["--rlimit", "nofile", "ls"], "'--rlimit'", "NAME=SOFT:HARD"),
        (["--rlimit", "nofile=-1", "ls"], "'--rlimit'", "unlimited"),
        (["--rlimit", "files=1", "ls"], "rlimits['files']", "nofile"),
        (["--rlimit", "nofile=2:1", "ls"], "rlimits['nofile']", "soft <= hard"),
        (["--umask", "8", "ls"], "'--umask'", "octal"),
        (["--umask", "7777", "ls"], "LaunchOptions.umask", "to 0o777"),
        (["--nice", "20", "ls"], "LaunchOptions.nice", "-20 to 19"),
        (["--log-limit", "10 MB", "ls"], "'--log-limit'", "500M"),
        (["--log-limit", "1K", "ls"], "LaunchOptions.log_limit", "from 65536"),
        (["-j", "2", "ls"], "'-j'", "as in 2x4"),
        (["-j", "0x3", "ls"], "'-j'", "1 or more of each"),
        (["-j", "2x0", "ls"], "'-j'", "1 or more of each"),
        (["-j", "2xtpu", "ls"], "'-j'", "2xgpu"),
        (["-j", "1000x1000", "ls"], "1000000 procs", "100000 at most"),
        (["-j", "1x2", "-n", "2", "ls"], "-n and -j", "give one of them"),
        (["-j", "1x2", "--nnodes", "2", "ls"], "-j and --nnodes", "give one of them"),
        (["-n", "2", "--nproc-per-node", "2", "ls"], "-n and --nproc-per-node", "give one of them"),
        (["--nnodes", "0", "ls"], "'--nnodes'", "as in 2:4"),
        (["--nnodes", "4:2", "ls"], "'--nnodes'", "FEWEST:MOST"),
        (["--max-restarts", "-1", "ls"], "'--max-restarts'", "x>=0"),
        (["--restart-delay", "soon", "ls"], "'--restart-delay'", "1.5h"),
        (["--restart-delay", "6m", "ls"], "'--restart-delay'", "0 to 300 seconds"),
        (["--nproc-per-node", "all", "ls"], "'--nproc-per-node'", "or gpu, or cpu"),
        (["--strategy", "PACK", "ls"], "--strategy", "give -j NxM"),
        (["--no-fail-fast", "-n", "2", "ls"], "--no-fail-fast", "give -j NxM"),
        (["-j", "1x2", "-e", "MASTER_PORT=1", "ls"], "'--env'", "MASTER_PORT; leave it out"),
        (["-j", "1x2", "--strategy", "HEAP", "ls"], "'--strategy'", "STRICT_SPREAD"),
        (["--cpus", "-1", "ls"], "'--cpus'", "as 2 or 0.5"),
        (["--gpus", "1.5", "ls"], "Placement.num_gpus", "whole number"),
        (["--memory", "5X", "ls"], "'--memory'", "16Gi"),
        (["--resources", "a", "ls"], "'--resources'", "NAME=QTY"),
        (["--resources", "a=b", "ls"], "'--resources'", "0.5"),
        (["--resources", "a=1", "--resources", "a=2", "ls"], "'--resources'", "give it once"),
        (["--resources", "GPU=1", "ls"], "Placement.resources['GPU']", "num_gpus"),
        (["--label", "zone", "ls"], "'--label'", "NAME=VALUE"),
        (["--node", "head-7", "ls"], "'--node'", "IP address"),
        (["--gpu-mask", "all", "ls"], "'--gpu-mask'", "inherit"),
        (["--start-timeout", "0", "ls"], "'--start-timeout'", "1.5h"),
        (["--colour", "ls"], "--colour", "then `--`, then PROGRAM"),
        (["-n", "4"], "PROGRAM", "then `--`, then PROGRAM"),
        (["--", ""], "PROGRAM", "empty"),
    ],
)
def test_a_bad_option_gives_125_and_is_named_with_the_way_out(
    call: Call, capsys: pytest.CaptureFixture[str], args: list[str], named: str, way_out: str
) -> None:
    assert call("run", *args) == 125
    said = capsys.readouterr()
    assert named in said.err
    assert way_out in said.err
    assert said.out == ""


@pytest.mark.parametrize("separator", [[], ["--"]])
def test_options_behind_the_program_are_its_own(call: Call, separator: list[str]) -> None:
    assert call("run", "-n", "2", *separator, "prog", "-n", "9", "--help", "--", "--grace") == 42
    options = list(Started.launches.values())
    assert len(options) == 2
    assert options[0].program == "prog"
    assert options[0].args == ("-n", "9", "--help", "--", "--grace")


def test_procs_are_named_by_rank_and_know_it_whatever_env_says(call: Call) -> None:
    call("run", "-n", "2", "--name", "job", "-e", "RAY_LAUNCHER_RANK=7", "-e", "A=b=c", "ls")
    assert list(Started.launches) == ["job/0", "job/1"]
    assert [dict(options.env) for options in Started.launches.values()] == [
        {"RAY_LAUNCHER_RANK": rank, "RAY_LAUNCHER_NPROCS": "2", "A": "b=c"} for rank in "01"
    ]


def test_a_variable_without_a_value_gets_the_one_it_has_here(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_MINE", "s=cret")
    call("run", "--env", "TOKEN_OF_MINE", "ls")
    assert Started.launches["run/0"].env["TOKEN_OF_MINE"] == "s=cret"


def test_procs_run_in_the_current_directory_unless_told_otherwise(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given, meant in (([], tmp_path), (["--cwd", "sub"], tmp_path / "sub"), (["--cwd", "/x"], Path("/x"))):
        call("run", *given, "ls")
        assert Started.launches["run/0"].cwd == str(meant)


def test_the_remaining_options_arrive(call: Call) -> None:
    assert call("run", "--grace", "inf", "--address", "h:1", "--env-remove", "A*", "--env-remove", "B", "ls") == 42
    assert (Started.grace, Started.address) == (float("inf"), "h:1")
    assert Started.launches["run/0"].env_remove == ("A*", "B")
    call("run", "ls")
    assert (Started.grace, Started.address) == (10, None)


def test_limits_arrive(call: Call) -> None:
    bindings = ("--bind", "cpus=0-3,8", "--bind", "membind=0")
    rlimits = ("--rlimit", "nofile=65536", "--rlimit", "CORE=0:unlimited")
    rest = ("--umask", "027", "--nice", "-5", "--time-limit", "1.5h", "--signal", "sigusr1@2m", "--grace", "3")
    assert call("run", *bindings, *rlimits, *rest, "ls") == 42
    options = Started.launches["run/0"]
    assert options.proc_bind == ProcBind(cpus="0-3,8", membind="0")
    assert options.rlimits == {"nofile": (65536, 65536), "core": (0, -1)}
    assert (options.umask, options.nice) == (0o27, -5)
    assert (options.time_limit, options.time_limit_grace) == (5400, 3)
    assert options.pre_kill_signal == (signal.SIGUSR1, 120)


def test_a_log_limit_arrives_in_bytes(call: Call) -> None:
    call("run", "--log-limit", "1.5Mi", "ls")
    assert Started.launches["run/0"].log_limit == 3 << 19
    call("run", "ls")
    assert Started.launches["run/0"].log_limit is None


@pytest.mark.parametrize("given, seconds", [("90", 90), ("90s", 90), ("0.5", 0.5), (".5m", 30), ("2h", 7200)])
def test_a_time_has_a_unit_or_is_in_seconds(call: Call, given: str, seconds: float) -> None:
    call("run", "--time-limit", given, "ls")
    assert Started.launches["run/0"].time_limit == seconds


def test_without_limits_there_are_none(call: Call) -> None:
    call("run", "ls")
    options = Started.launches["run/0"]
    plain = LaunchOptions(program="ls")
    for name in ("proc_bind", "rlimits", "umask", "nice", "time_limit", "pre_kill_signal", "max_restarts"):
        assert getattr(options, name) == getattr(plain, name)


@pytest.mark.parametrize(
    "given, shape",
    [
        (["-j", "2x4"], Shape(2, 4)),
        (["-j", "2xgpu"], Shape(2, "gpu")),
        (["--nnodes", "2", "--nproc-per-node", "cpu"], Shape(2, "cpu")),
        (["--nnodes", "3"], Shape(3, 1)),
        (["--nnodes", "2:4"], Shape(4, 1, min_nodes=2)),
        (["-j", "1x2", "--max-restarts", "3"], Shape(1, 2, max_restarts=3)),
        (["-j", "1x2", "--max-restarts", "3", "--restart-delay", "0"], Shape(1, 2, max_restarts=3, restart_delay=0)),
        (["--nproc-per-node", "8"], Shape(1, 8)),
        (["-j", "2x4", "--strategy", "STRICT_PACK", "--no-fail-fast"], Shape(2, 4, "STRICT_PACK", fail_fast=False)),
    ],
)
def test_each_way_to_ask_for_a_gang_gives_one(call: Call, given: list[str], shape: Shape) -> None:
    assert call("run", *given, "--name", "job", "-e", "A=b", "prog", "arg") == 42
    assert isinstance(Started.job, AGang)
    assert (Started.job.name, Started.job.shape) == ("job", shape)
    options = Started.job.options
    assert (options.program, options.args, options.env) == ("prog", ("arg",), {"A": "b"})


@pytest.mark.parametrize("many", [["-n", "2"], ["-j", "1x2"]])
def test_resources_arrive(call: Call, many: list[str]) -> None:
    held = ("--cpus", "0.5", "--gpus", "2", "--memory", "16Gi", "--resources", "a=1", "--resources", "b=.5")
    where = ("--label", "zone=in(a,b)", "--label", "disk=!hdd", "--node", "ab12", "--gpu-mask", "proc")
    assert call("run", *many, *held, *where, "--start-timeout", "30m", "ls") == 42
    options = Started.job.options if isinstance(Started.job, AGang) else Started.launches["run/1"]
    assert options.placement == Placement(
        num_cpus=0.5,
        num_gpus=2,
        memory=16 << 30,
        resources={"a": 1, "b": 0.5},
        label_selector={"zone": "in(a,b)", "disk": "!hdd"},
        node_id="ab12",
        timeout=1800,
        gpu_mask="proc",
    )


def test_restarts_arrive(call: Call) -> None:
    assert call("run", "--max-restarts", "2", "--restart-delay", "1.5m", "ls") == 42
    options = Started.launches["run/0"]
    assert (options.max_restarts, options.restart_delay) == (2, 90)


def test_without_resources_nothing_is_held(call: Call) -> None:
    call("run", "ls")
    assert Started.launches["run/0"].placement == Placement()


@pytest.mark.parametrize(
    "given, size",
    [
        ("1000", 1000),
        ("2K", 2000),
        ("2Ki", 2048),
        ("1.5M", 1_500_000),
        ("3Gi", 3 << 30),
        ("1GiB", 1 << 30),
        ("4T", 4e12),
    ],
)
def test_a_size_has_a_unit_or_is_in_bytes(call: Call, given: str, size: float) -> None:
    call("run", "--memory", given, "ls")
    assert Started.launches["run/0"].placement.memory == size


def test_arguments_that_are_not_utf8_arrive_as_they_are(call: Call) -> None:
    call("run", "cat", "\udcff")
    assert Started.launches["run/0"].args == ("\udcff",)


def test_the_version_is_the_packages(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert ray_launcher.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_shows_an_example_and_every_option(call: Call, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert call("run", option) == 0
    text = capsys.readouterr().out
    assert "ray-launcher run -n 4" in text
    limits = ("--bind", "--rlimit", "--umask", "--nice", "--time-limit", "--signal")
    gangs = ("-j", "--nnodes", "--nproc-per-node", "--strategy", "--no-fail-fast", "ray-launcher run -j 2x4")
    held = ("--cpus", "--gpus", "--memory", "--resources", "--label", "--node", "--gpu-mask", "--start-timeout")
    restarts = ("--max-restarts", "--restart-delay")
    others = ("-n", "--env", "--env-remove", "--cwd", "--grace", "--dry-run", "--address", "--name", "Exit code")
    for name in (*gangs, *held, *limits, *restarts, *others):
        assert name in text


def test_an_unknown_verb_gives_125(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("walk") == 125
    assert "walk" in capsys.readouterr().err
