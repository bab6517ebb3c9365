"""What every spawner must do, as a test suite: `SpawnerContract`."""

from __future__ import annotations

import dataclasses
import fcntl
import math
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import ray

from ray_launcher import (
    Exited,
    Failed,
    LaunchOptions,
    LaunchResult,
    ProcExitResult,
    ProcLauncher,
    Signaled,
    decode_exit,
)


class Launch(Protocol):
    """What the fixture `launch` of `SpawnerContract` gives."""

    def __call__(self, opts: LaunchOptions, proc_id: str | None = None) -> LaunchResult:
        """Launch, and remember to kill it after the test. The id is made up if it does not matter."""


class SpawnerContract:
    """What every spawner must do, as tests; inherit from it and define a fixture `launcher`, of any scope.

    The recipes (`exits` to `missing`) say which programs to launch. They need a POSIX shell, `flock` and a file system
    that tests and procs share; override them, and `holds`, for a spawner that has other programs.
    """

    #: Seconds that anything may take before a test fails.
    deadline = 60.0
    #: Procs that run at once.
    crowd = 50

    # -- recipes --------------------------------------------------------------------------------------------------

    def exits(self, code: int) -> LaunchOptions:
        """Exits with this code, at once."""
        return self.shell(f"exit {code}")

    def ends_by(self, signum: int) -> LaunchOptions:
        """Is killed by this signal, at once."""
        return self.shell(f"kill -{signum} $$")

    def says(self, text: str) -> LaunchOptions:
        """Writes this to stderr and exits with code 0."""
        return self.shell('printf %s "$1" >&2', text)

    def runs(self, mark: Path) -> LaunchOptions:
        """Marks `mark` and runs until it is ended."""
        return self.shell(f"{_LOCK} {_READY} exec sleep 9999", str(mark))

    def runs_with_child(self, mark: Path) -> LaunchOptions:
        """The same, with a child process that would run as long."""
        return self.shell(f"{_LOCK} sleep 9999 & {_READY} exec sleep 9999", str(mark))

    def ignores_term(self, mark: Path) -> LaunchOptions:
        """The same as `runs`, deaf to SIGTERM."""
        return self.shell(f"trap '' TERM; {_LOCK} {_READY} exec sleep 9999", str(mark))

    def missing(self) -> LaunchOptions:
        """A program that there is not, named "no-such-program"."""
        return LaunchOptions(program="/nonexistent/no-such-program")

    def shell(self, script: str, *args: str) -> LaunchOptions:
        """A shell script with arguments."""
        return LaunchOptions(program="/bin/sh", args=["-c", script, "sh", *args])

    def is_ready(self, mark: Path) -> bool:
        """Whether a proc has marked `mark`."""
        return mark.exists() and mark.read_text() == "ready\n"

    def is_alive(self, mark: Path) -> bool:
        """Whether any process is left of the proc that marked `mark`: it has the file locked."""
        with mark.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    # -- fixtures -------------------------------------------------------------------------------------------------

    @pytest.fixture
    def mark(self, tmp_path: Path) -> Path:
        """For the recipes that mark a file."""
        return tmp_path / "mark"

    @pytest.fixture
    def launch(self, launcher: ProcLauncher) -> Iterator[Launch]:
        """Launches procs and kills those that the test leaves running."""
        launched: list[LaunchResult] = []

        def launch(opts: LaunchOptions, proc_id: str | None = None) -> LaunchResult:
            launched.append(launcher.launch(proc_id or f"contract-{uuid.uuid4().hex}", opts))
            return launched[-1]

        yield launch
        for result in launched:
            if not result.exit_port.done():
                launcher.kill(result.proc_id)
        for result in launched:
            self.end_of(result)

    def end_of(self, launched: LaunchResult) -> ProcExitResult:
        """How the proc ended, waited for."""
        return launched.exit_port.wait(self.deadline)

    def await_ready(self, mark: Path) -> None:
        """Wait until a proc has marked `mark`."""
        _until(lambda: self.is_ready(mark), f"{mark} is marked", self.deadline)

    def await_gone(self, mark: Path) -> None:
        """Wait until nothing is left of the proc that marked `mark`."""
        _until(lambda: not self.is_alive(mark), f"nothing is left of the proc that marked {mark}", self.deadline)

    # -- how procs end --------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("code", [0, 1, 255])
    def test_an_exit_code_is_reported(self, launch: Launch, code: int) -> None:
        """`Exited` with the leader's code."""
        assert self.end_of(launch(self.exits(code))).kind == Exited(code)

    @pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGKILL])
    def test_a_signal_is_reported(self, launch: Launch, signum: signal.Signals) -> None:
        """`Signaled` with the number of the signal that killed the leader."""
        assert self.end_of(launch(self.ends_by(signum))).kind == Signaled(signum, core_dumped=False)

    def test_an_unknown_program_is_failed_and_its_id_free_again(self, launch: Launch) -> None:
        """A launch that cannot be is an exit too, which names the program."""
        first = launch(self.missing())
        result = self.end_of(first)
        assert isinstance(result.kind, Failed)
        assert "no-such-program" in result.kind.reason
        assert result.stderr_tail == []
        assert self.end_of(launch(self.exits(0), first.proc_id)).ok

    def test_the_result_comes_once_and_stays_the_same(self, launch: Launch) -> None:
        """However often, late and differently it is asked for."""
        port = launch(self.exits(3)).exit_port
        called: list[ProcExitResult] = []
        port.add_done_callback(called.append)
        first = port.wait(self.deadline)
        port.add_done_callback(called.append)
        _until(lambda: len(called) == 2, "both callbacks are called", self.deadline)
        assert [*called, port.wait(0), decode_exit(ray.get(port.ref))] == [first] * 4
        assert len(called) == 2

    def test_many_run_at_once(self, launch: Launch, launcher: ProcLauncher, tmp_path: Path) -> None:
        """And each gives its own result."""
        marks = [tmp_path / str(index) for index in range(self.crowd)]
        running = [launch(self.runs(mark)) for mark in marks]
        exiting = [launch(self.exits(index)) for index in range(self.crowd)]
        for mark in marks:
            self.await_ready(mark)
        assert [self.end_of(launched).kind for launched in exiting] == [Exited(index) for index in range(self.crowd)]
        assert all(map(self.is_alive, marks))
        for launched in running:
            launcher.kill(launched.proc_id)
        assert {self.end_of(launched).kind for launched in running} == {Signaled(signal.SIGKILL)}

    # -- ending them ----------------------------------------------------------------------------------------------

    def test_terminate_ends_a_proc_with_sigterm(self, launch: Launch, launcher: ProcLauncher, mark: Path) -> None:
        """One that does not mind ends at once, however long the timeout."""
        launched = launch(self.runs(mark))
        self.await_ready(mark)
        launcher.terminate(launched.proc_id, math.inf)
        assert self.end_of(launched).kind == Signaled(signal.SIGTERM)

    @pytest.mark.parametrize("timeout", [0, 0.3])
    def test_terminate_kills_a_proc_that_ignores_sigterm(
        self, launch: Launch, launcher: ProcLauncher, mark: Path, timeout: float
    ) -> None:
        """When its timeout is over."""
        launched = launch(self.ignores_term(mark))
        self.await_ready(mark)
        launcher.terminate(launched.proc_id, timeout)
        assert self.end_of(launched).kind == Signaled(signal.SIGKILL)

    def test_kill_ends_a_proc_with_sigkill(self, launch: Launch, launcher: ProcLauncher, mark: Path) -> None:
        """Also one that has been asked politely, and has all the time to answer."""
        launched = launch(self.ignores_term(mark))
        self.await_ready(mark)
        launcher.terminate(launched.proc_id, math.inf)
        launcher.kill(launched.proc_id)
        assert self.end_of(launched).kind == Signaled(signal.SIGKILL)

    def test_kill_ends_the_children_too(self, launch: Launch, launcher: ProcLauncher, mark: Path) -> None:
        """A proc is its leader with all that it started."""
        launched = launch(self.runs_with_child(mark))
        self.await_ready(mark)
        launcher.kill(launched.proc_id)
        assert self.end_of(launched).kind == Signaled(signal.SIGKILL)
        self.await_gone(mark)

    def test_a_kill_right_after_the_launch_is_not_lost(
        self, launch: Launch, launcher: ProcLauncher, tmp_path: Path
    ) -> None:
        """It ends the proc, or keeps it from starting."""
        for index in range(self.crowd):
            launched = launch(self.runs(tmp_path / str(index)))
            launcher.kill(launched.proc_id)
            kind = self.end_of(launched).kind
            assert kind == Signaled(signal.SIGKILL) or isinstance(kind, Failed)

    def test_cancelling_the_ref_ends_the_proc(self, launch: Launch, mark: Path) -> None:
        """Nobody wants it any more."""
        launched = launch(self.runs(mark))
        ref = launched.exit_port.ref  # early: Ray may lose a cancel that overtakes its task
        self.await_ready(mark)
        ray.cancel(ref)
        result = self.end_of(launched)
        assert isinstance(result.kind, Failed)
        assert "cancelled" in result.kind.reason
        self.await_gone(mark)

    # -- ids ------------------------------------------------------------------------------------------------------

    def test_an_id_can_be_used_again_and_old_requests_do_not_reach_the_new_proc(
        self, launch: Launch, launcher: ProcLauncher, tmp_path: Path
    ) -> None:
        """Least of all the kill that a terminate had announced."""
        first = launch(self.runs(tmp_path / "first"))
        self.await_ready(tmp_path / "first")
        launcher.terminate(first.proc_id, 0.5)
        assert self.end_of(first).kind == Signaled(signal.SIGTERM)
        again = launch(self.runs(tmp_path / "again"), first.proc_id)
        self.await_ready(tmp_path / "again")
        with pytest.raises(TimeoutError):
            again.exit_port.wait(1.0)
        assert self.is_alive(tmp_path / "again")

    def test_a_second_launch_of_a_running_id_fails_and_the_first_goes_on(
        self, launch: Launch, launcher: ProcLauncher, tmp_path: Path
    ) -> None:
        """`Failed` says that the id is taken; requests still reach the first."""
        first = launch(self.runs(tmp_path / "first"))
        self.await_ready(tmp_path / "first")
        result = self.end_of(launch(self.runs(tmp_path / "second"), first.proc_id))
        assert isinstance(result.kind, Failed)
        assert "already running" in result.kind.reason
        assert self.is_alive(tmp_path / "first")
        assert not (tmp_path / "second").exists()
        launcher.kill(first.proc_id)
        assert self.end_of(first).kind == Signaled(signal.SIGKILL)

    def test_unknown_and_finished_ids_are_no_error(self, launch: Launch, launcher: ProcLauncher) -> None:
        """Nothing happens, and the spawner goes on serving."""
        finished = launch(self.exits(0))
        self.end_of(finished)
        for proc_id in (finished.proc_id, f"never-{uuid.uuid4().hex}"):
            launcher.terminate(proc_id, 0)
            launcher.kill(proc_id)
        assert self.end_of(launch(self.exits(0))).ok

    # -- stderr ---------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "changes, tail",
        [
            ({}, ["one", "", "three", "unfinished"]),
            ({"tail_lines": 2}, ["three", "unfinished"]),
            ({"tail_lines": 0}, []),
            ({"want_stdio": False}, []),
        ],
        ids=str,
    )
    def test_the_result_has_the_last_lines_of_stderr(
        self, launch: Launch, changes: dict[str, Any], tail: list[str]
    ) -> None:
        """As many as wanted, oldest first, blank lines and an unfinished last one included."""
        opts = dataclasses.replace(self.says("one\n\nthree\nunfinished"), **changes)
        assert self.end_of(launch(opts)) == ProcExitResult(Exited(0), tail)


#: Opens the file $1 and locks it, for the shell and all that it starts from here on.
_LOCK = 'exec 9>>"$1"; flock 9;'
_READY = "echo ready >&9;"


def _until(probe: Callable[[], bool], what: str, deadline: float) -> None:
    give_up = time.monotonic() + deadline
    while not probe():
        assert time.monotonic() < give_up, f"not within {deadline} s: {what}"
        time.sleep(0.01)
