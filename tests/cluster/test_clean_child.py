"""What a proc inherits through the whole chain: nothing of the Ray workers above it."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ray_rig import RAYLET_ENV, Nodes, ended, python

from ray_launcher import LaunchOptions, Placement, RayProcLauncher

REPORT = """
import json, os, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
fds = {fd: os.readlink("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd") if fd != "3"}
print(json.dumps({
    "argv": sys.orig_argv, "environ": dict(os.environ), "cwd": os.getcwd(), "status": status, "fds": fds,
    "nice": os.nice(0), "ids": [os.getpid(), os.getsid(0), os.getpgrp()], "umask": os.umask(0),
    "stdin": sys.stdin.read(), "oom": open("/proc/self/oom_score_adj").read().strip(),
}))
"""


def report(launcher: RayProcLauncher, placement: Placement | None = None, **options: Any) -> dict[str, Any]:
    """What a proc launched with these options finds."""
    assert ended(launcher.launch("child", python(REPORT, placement, **options)).exit_port).ok
    [line] = launcher.logs("child")
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.fixture(scope="module")
def child(shared: RayProcLauncher, nodes: Nodes) -> dict[str, Any]:
    return report(shared, nodes.on("a"))


def test_no_signal_is_blocked_ignored_or_pending(child: dict[str, Any]) -> None:
    python_ignores = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    status = {name: int(child["status"][name], 16) for name in ("SigBlk", "SigIgn", "SigPnd", "ShdPnd")}
    assert status == {"SigBlk": 0, "SigIgn": python_ignores, "SigPnd": 0, "ShdPnd": 0}


def test_a_program_that_touches_no_signals_has_none_ignored_or_caught(shared: RayProcLauncher) -> None:
    opts = LaunchOptions(program="cat", args=["/proc/self/status"])
    assert ended(shared.launch("cat", opts).exit_port).ok
    status = dict(line.split(":", 1) for line in shared.logs("cat"))
    assert {int(status[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")} == {0}


def test_three_descriptors_are_open(child: dict[str, Any]) -> None:
    stdin, stdout, stderr = (child["fds"][fd] for fd in "012")
    assert child["fds"].keys() == {"0", "1", "2"}
    assert stdin == os.devnull
    assert Path(stdout).name.endswith(".out")
    assert Path(stderr).name.endswith(".err")


def test_stdin_is_at_its_end(child: dict[str, Any]) -> None:
    assert child["stdin"] == ""


def test_it_leads_its_own_session_and_group(child: dict[str, Any]) -> None:
    pid, session, group = child["ids"]
    assert pid == session == group


def test_it_is_as_nice_as_its_raylet(child: dict[str, Any]) -> None:
    assert child["nice"] == os.nice(0)


def test_the_umask_is_the_raylets(child: dict[str, Any]) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    assert child["umask"] == umask


def test_rays_worker_settings_are_gone(child: dict[str, Any]) -> None:
    added = child["environ"].keys() - os.environ.keys() - RAYLET_ENV.keys()
    assert added <= {"RAY_LAUNCHER_ID", "PWD", "SHLVL", "_", "LC_CTYPE"}, {
        name: child["environ"][name] for name in added
    }
    for name in (
        "PYTHONBREAKPOINT",
        "RAY_JOB_ID",
        "RAY_RAYLET_PID",
        "RAY_LD_PRELOAD_ON_WORKERS",
        "RAY_worker_niceness",
    ):
        assert name not in child["environ"]


def test_what_the_raylet_had_is_there(child: dict[str, Any]) -> None:
    assert child["environ"]["OMP_NUM_THREADS"] == RAYLET_ENV["OMP_NUM_THREADS"]
    assert child["environ"]["OF_RAYLET"] == "yes"
    assert child["environ"]["PATH"] == os.environ["PATH"]


def test_the_token_of_the_cluster_is_not(child: dict[str, Any]) -> None:
    assert "RAY_AUTH_TOKEN" not in child["environ"]
    assert RAYLET_ENV["RAY_AUTH_TOKEN"] not in str(child)


def test_no_gpu_is_visible_without_a_request(child: dict[str, Any], shared: RayProcLauncher) -> None:
    assert child["environ"]["CUDA_VISIBLE_DEVICES"] == ""
    asked = report(shared, env={"CUDA_VISIBLE_DEVICES": "0"})
    assert asked["environ"]["CUDA_VISIBLE_DEVICES"] == ""


def test_gpu_mask_inherit_shows_the_raylets_gpus_or_the_callers(shared: RayProcLauncher) -> None:
    inherit = Placement(gpu_mask="inherit")
    assert report(shared, inherit)["environ"]["CUDA_VISIBLE_DEVICES"] == RAYLET_ENV["CUDA_VISIBLE_DEVICES"]
    asked = report(shared, inherit, env={"CUDA_VISIBLE_DEVICES": "0"})
    assert asked["environ"]["CUDA_VISIBLE_DEVICES"] == "0"


def test_env_remove_takes_globs_and_env_comes_after(shared: RayProcLauncher) -> None:
    environ = report(shared, env_remove=["OF_*", "OMP_NUM_THREAD[S]", "HOM?"], env={"OF_MINE": "1"})["environ"]
    assert environ.keys() & {"OF_RAYLET", "OMP_NUM_THREADS", "HOME"} == set()
    assert environ["OF_MINE"] == "1"
    assert environ["PATH"] == os.environ["PATH"]


def test_without_inherit_env_there_is_only_what_was_asked_for(shared: RayProcLauncher) -> None:
    environ = report(shared, inherit_env=False, env={"MINE": "1"})["environ"]
    assert environ.keys() - {"LC_CTYPE"} == {"MINE", "RAY_LAUNCHER_ID", "CUDA_VISIBLE_DEVICES"}


def test_the_launchers_own_variables_win(shared: RayProcLauncher) -> None:
    ours = ("HYPERACTOR_PROCESS_NAME", "HYPERACTOR_MESH_BOOTSTRAP_MODE", "BOOTSTRAP_LOG_CHANNEL", "RAY_LAUNCHER_ID")
    environ = report(
        shared, env=dict.fromkeys(ours, "theirs"), process_name="name", bootstrap_payload="payload", log_channel="log"
    )["environ"]
    assert [environ[name] for name in ours[:3]] == ["name", "payload", "log"]
    assert environ["RAY_LAUNCHER_ID"].startswith(f"{shared.session}/")
    assert "HYPERACTOR_PROCESS_NAME" not in report(shared)["environ"]


def test_a_relative_cwd_and_program_start_from_the_agents_directory(
    shared: RayProcLauncher, child: dict[str, Any]
) -> None:
    assert report(shared, cwd="/")["cwd"] == "/"
    assert report(shared, cwd="..")["cwd"] == str(Path(child["cwd"]).parent)


def test_bytes_that_are_no_utf8_arrive_as_they_were(shared: RayProcLauncher) -> None:
    odd = os.fsdecode(b"\xff\xfe")
    assert report(shared, env={"ODD": odd})["environ"]["ODD"] == odd


def test_a_runtime_env_gives_its_variables_and_directory(nodes: Nodes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "files.zip", "w") as files:
        files.writestr("of-the-driver", "here")
    variables = {"MINE": "1", "OMP_NUM_THREADS": "1", "OF_RAYLET": "no"}
    with RayProcLauncher(
        runtime_env={"env_vars": variables, "working_dir": f"file://{tmp_path}/files.zip"}
    ) as launcher:
        found = report(launcher)
        assert found["environ"].items() >= variables.items()
        assert Path(found["cwd"], "of-the-driver").exists()
        assert "RAY_worker_niceness" not in found["environ"]
