"""Procs in virtual machines, by the example: what arrives in a guest, what it tells, and what is left of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import guests
import pytest
import ray
import vm_spawner
from vm_spawner import VmSpawner

from ray_launcher import (
    ActorProcLauncher,
    Exited,
    Failed,
    LaunchOptions,
    LaunchResult,
    ProcExitResult,
    Signaled,
    start_spawner,
)

NONE = guests.why_none()
pytestmark = [pytest.mark.skipif(NONE is not None, reason=str(NONE)), pytest.mark.timeout(2 * guests.DEADLINE)]
#: As files of a guest, the node's busybox under another name.
FILES = {"/opt/ours/deeper/echo": str(shutil.which("busybox"))}


@pytest.fixture(scope="module")
def launcher(cluster: str) -> Iterator[ActorProcLauncher]:
    spawner = start_spawner(VmSpawner, guests.kernel(), files=FILES)
    launcher = ActorProcLauncher(spawner)
    launcher.launch("first", LaunchOptions(program="true")).exit_port.wait(guests.DEADLINE)  # brings agent, supervisor
    yield launcher
    ray.kill(spawner)


@pytest.fixture
def end_of(launcher: ActorProcLauncher) -> Callable[..., ProcExitResult]:
    """Runs a script in a guest, or a program where one is named."""

    def end_of(script: str = "", **options: Any) -> ProcExitResult:
        options = {"program": "sh", "args": ["-c", script], **options}
        return launcher.launch("proc", LaunchOptions(**options)).exit_port.wait(guests.DEADLINE)

    return end_of


@pytest.fixture
def running(launcher: ActorProcLauncher, until: Callable[..., None]) -> Iterator[Callable[[str], LaunchResult]]:
    """Runs a script in a guest, and returns when it has written "up" and its test's own number on the console."""
    launched: list[LaunchResult] = []

    def run(script: str) -> LaunchResult:
        launched.append(launcher.launch("runs", LaunchOptions(program="sh", args=["-c", script], env={"UP": UP})))
        until(lambda: guests.pids_of(UP), "the script runs")
        return launched[-1]

    yield run
    launcher.kill("runs")
    for each in launched:
        each.exit_port.wait(guests.DEADLINE)


UP = f"up, for {os.getpid()}"


def test_a_guest_tells_a_code_from_the_signal_that_a_shell_would_tell_by_it(
    end_of: Callable[..., ProcExitResult],
) -> None:
    assert end_of("exit 137").kind == Exited(137)


def test_a_guest_tells_whether_core_was_dumped(end_of: Callable[..., ProcExitResult]) -> None:
    assert end_of("ulimit -c unlimited; kill -ABRT $$").kind == Signaled(signal.SIGABRT, core_dumped=True)


def test_program_arguments_variables_and_directory_arrive_as_they_are(end_of: Callable[..., ProcExitResult]) -> None:
    odd = ["", "two words", "it's", 'a "$HOME" `id` \\', "-n", "*", "new\nline", "\u00e9\udcff"]
    script = 'printf "<%s>" "$@" "$ODD" "$PWD" >&2'
    result = end_of(program="sh", args=["-c", script, "sh", *odd], env={"ODD": "a 'b'\n$c"}, cwd="/tmp")
    shown = "".join(f"<{each}>" for each in [*odd, "a 'b'\n$c", "/tmp"]).replace("\udcff", "\ufffd")
    assert result == ProcExitResult(Exited(0), shown.split("\n"))


def test_a_program_of_the_node_runs_in_the_guest(end_of: Callable[..., ProcExitResult]) -> None:
    assert end_of("exec /opt/ours/deeper/echo hello >&2") == ProcExitResult(Exited(0), ["hello"])


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"program": "sh", "cwd": "/nowhere"}, "can't cd to /nowhere"),
        ({"program": "/init.no"}, "/init.no: not found"),
        ({"program": "/proc"}, "Permission denied"),
        ({"program": "/no", "want_stdio": False, "tail_lines": 0}, "/no: not found"),
    ],
    ids=["directory", "missing", "no-program", "silent"],
)
def test_what_cannot_be_started_is_failed_with_the_guests_reason(
    end_of: Callable[..., ProcExitResult], options: dict[str, Any], reason: str
) -> None:
    kind = end_of(**options).kind
    assert isinstance(kind, Failed)
    assert kind.reason.startswith(f"the guest cannot start {options['program']}: ")
    assert reason in kind.reason


@pytest.mark.parametrize("code", [126, 127])
def test_codes_of_programs_that_cannot_be_started_may_be_a_programs_own(
    end_of: Callable[..., ProcExitResult], code: int
) -> None:
    assert end_of(f"exit {code}").kind == Exited(code)


def test_what_a_program_leaves_behind_does_not_hold_up_its_end(end_of: Callable[..., ProcExitResult]) -> None:
    assert end_of("(trap '' TERM HUP; setsid sleep 9999) & exit 4").kind == Exited(4)


@pytest.mark.parametrize(
    "script, seen",
    [("poweroff -f", "Power down"), ("echo c >/proc/sysrq-trigger", "Kernel Offset"), ("kill -9 -1", "")],
)
def test_a_guest_that_ends_without_a_word_is_failed_with_what_its_console_has_shown(
    end_of: Callable[..., ProcExitResult], script: str, seen: str
) -> None:
    kind = end_of(f"echo 7 >/proc/sys/kernel/printk; {script}; sleep 9").kind
    assert isinstance(kind, Failed)
    assert kind.reason.startswith("nobody knows how sh ended: its machine ")
    assert seen in kind.reason


def test_a_kernel_that_is_not_there_is_failed_with_its_name(cluster: str) -> None:
    spawner = start_spawner(VmSpawner, "/nowhere/vmlinuz")
    result = ActorProcLauncher(spawner).launch("proc", LaunchOptions(program="true")).exit_port.wait(guests.DEADLINE)
    ray.kill(spawner)
    assert isinstance(result.kind, Failed)
    assert "could not open kernel file '/nowhere/vmlinuz'" in result.kind.reason


def test_a_machine_that_somebody_kills_is_failed(running: Callable[[str], LaunchResult]) -> None:
    launched = running('echo "$UP"; sleep 9999')
    [pid] = guests.pids_of(UP)
    os.kill(pid, signal.SIGKILL)
    kind = launched.exit_port.wait(guests.DEADLINE).kind
    assert isinstance(kind, Failed)
    assert "its machine killed by SIGKILL" in kind.reason


def test_terminate_reaches_children_with_sessions_of_their_own(
    running: Callable[[str], LaunchResult], launcher: ActorProcLauncher
) -> None:
    child = "trap 'echo child >&2; exit' TERM; echo \"$UP\"; sleep 9999 & wait"
    launched = running(
        f"trap 'wait; echo leader >&2; exit 5' TERM; setsid sh -c '{child.replace(chr(39), QUOTE)}' & wait"
    )
    launcher.terminate("runs", 60)
    assert launched.exit_port.wait(guests.DEADLINE) == ProcExitResult(Exited(5), ["child", "leader"])


QUOTE = "'\\''"


def test_a_terminate_while_the_guest_boots_is_not_lost(launcher: ActorProcLauncher) -> None:
    launched = launcher.launch("boots", LaunchOptions(program="sleep", args=["9999"]))
    launcher.terminate("boots", guests.DEADLINE)
    assert launched.exit_port.wait(guests.DEADLINE).kind == Signaled(signal.SIGTERM)


def test_a_guest_that_does_not_answer_is_killed_itself(
    running: Callable[[str], LaunchResult], launcher: ActorProcLauncher
) -> None:
    launched = running('kill -STOP -1; echo "$UP"; exec sleep 9999')
    launcher.terminate("runs", 0.1)
    assert launched.exit_port.wait(guests.DEADLINE).kind == Signaled(signal.SIGKILL)
    assert not guests.pids_of(UP)


def test_no_process_listing_shows_variables_or_arguments(running: Callable[[str], LaunchResult]) -> None:
    running('echo "$UP"; exec sleep 9999')
    [pid] = guests.pids_of(UP)
    assert UP.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_machines_end_with_their_spawner(cluster: str, until: Callable[..., None]) -> None:
    spawner = start_spawner(VmSpawner, guests.kernel())
    here = f"{UP}, for its spawner"
    port = ActorProcLauncher(spawner).launch("proc", LaunchOptions(program="sh", args=["-c", SLEEPS, "sh", here]))
    until(lambda: guests.pids_of(here), "the guest is up")
    ray.kill(spawner)
    assert isinstance(port.exit_port.wait(guests.DEADLINE).kind, Failed)
    until(lambda: not guests.pids_of(here), "the machine is gone")


SLEEPS = 'echo "$1"; exec sleep 9999'


def test_the_example_prints_what_it_is_for(cluster: str) -> None:
    command = [sys.executable, vm_spawner.__file__, str(guests.kernel())]
    environ = {**os.environ, "RAY_ADDRESS": cluster}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=guests.DEADLINE, check=False)
    assert done.stdout == "demo exited with code 3, with the last words ['Linux x86_64']\n", done.stderr
