"""Procs that are virtual machines end as the program in them does, and leave no machine behind."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from vm_spawner import VmSpawner

from ray_launcher import ActorProcLauncher, Exited, Failed, LaunchOptions, LaunchResult, Signaled, start_spawner

#: Seconds; machines are emulated, and boot slowly where others compute.
DEADLINE = 100.0
FOREVER = LaunchOptions(program="sleep", args=["9999"])


def kernel() -> str:
    """Of this machine, or what RAY_LAUNCHER_VM_KERNEL names; "" without."""
    found = os.environ.get("RAY_LAUNCHER_VM_KERNEL") or next(map(str, sorted(Path("/boot").glob("vmlinuz*"))), "")
    return found if found and os.access(found, os.R_OK) else ""


pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"),
    pytest.mark.skipif(not Path("/bin/busybox").exists(), reason="no static busybox: install busybox-static"),
    pytest.mark.skipif(not kernel(), reason="no kernel to boot: set RAY_LAUNCHER_VM_KERNEL to a vmlinuz"),
]


@pytest.fixture
def spawner(cluster: str) -> Iterator[Any]:
    spawner = start_spawner(VmSpawner, kernel())
    yield spawner
    ray.kill(spawner)


@pytest.fixture
def launcher(spawner: Any) -> ActorProcLauncher:
    return ActorProcLauncher(spawner)


def shell(script: str, **more: Any) -> LaunchOptions:
    return LaunchOptions(program="sh", args=["-c", script], **more)


def launch(launcher: ActorProcLauncher, opts: LaunchOptions) -> LaunchResult:
    return launcher.launch(uuid.uuid4().hex, opts)


@pytest.mark.parametrize(
    "script, kind", [("exit 137", Exited(137)), ("kill -9 $$", Signaled(9, False)), ("exit 0", Exited(0))]
)
def test_the_true_status_is_told(launcher: ActorProcLauncher, script: str, kind: object) -> None:
    assert launch(launcher, shell(script)).exit_port.wait(DEADLINE).kind == kind


def test_environment_directory_and_last_lines_are_the_programs(launcher: ActorProcLauncher) -> None:
    opts = shell('pwd >&2; printf "%s" "$WORDS" >&2', env={"WORDS": "it's\nso"}, cwd="/tmp", tail_lines=2)
    assert launch(launcher, opts).exit_port.wait(DEADLINE).stderr_tail == ["it's", "so"]


def test_a_program_that_the_machine_lacks_is_named(launcher: ActorProcLauncher) -> None:
    result = launch(launcher, LaunchOptions(program="no-such-program")).exit_port.wait(DEADLINE)
    assert result.kind == Failed("cannot find no-such-program in the machine")


def test_terminate_reaches_the_program(launcher: ActorProcLauncher, spawner: Any) -> None:
    launched = launch(launcher, FOREVER)
    ray.get(spawner.until_running.remote(launched.proc_id), timeout=DEADLINE)
    launcher.terminate(launched.proc_id, math.inf)
    assert launched.exit_port.wait(DEADLINE).kind == Signaled(signal.SIGTERM)


def test_a_kill_right_after_the_launch_is_not_lost(launcher: ActorProcLauncher) -> None:
    launched = launch(launcher, FOREVER)
    launcher.kill(launched.proc_id)
    assert launched.exit_port.wait(DEADLINE).kind == Signaled(signal.SIGKILL)


def test_no_machine_outlives_its_spawner(
    launcher: ActorProcLauncher, spawner: Any, until: Callable[[Callable[[], object], str], None]
) -> None:
    launched = launch(launcher, FOREVER)
    ray.get(spawner.until_running.remote(launched.proc_id), timeout=DEADLINE)
    ray.kill(spawner)
    assert isinstance(launched.exit_port.wait(DEADLINE).kind, Failed)
    until(lambda: subprocess.run(["pgrep", "-f", "qemu-system.*panic=-1"], check=False).returncode == 1, "none is left")


def test_a_kernel_that_there_is_not_fails_the_launch(cluster: str) -> None:
    spawner = start_spawner(VmSpawner, "/nonexistent/vmlinuz")
    result = launch(ActorProcLauncher(spawner), FOREVER).exit_port.wait(DEADLINE)
    ray.kill(spawner)
    assert isinstance(result.kind, Failed)
    assert "could not open kernel file '/nonexistent/vmlinuz'" in result.kind.reason


def test_the_example_prints_what_the_guest_ended_with() -> None:
    command = [sys.executable, str(Path(__file__).parents[2] / "examples" / "vm_spawner.py"), kernel()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert done.stdout == "guest exited with code 3\n"
