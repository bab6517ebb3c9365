"""Functions as procs: their answers and exceptions come back, whatever their size, and every other end is told."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from limits import cgroup
from node_rig import until
from ray_rig import DEADLINE, Nodes, agents_of, ended, living, pid_of

from ray_launcher import CallError, Exited, Failed, LaunchOptions, Placement, RayProcLauncher, Signaled
from ray_launcher.callables import RemoteError

LARGE = 3_000_000


def no_answer(launcher: RayProcLauncher, fn: Any, *args: Any, **fields: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        launcher.call_with(fn, args, **fields).result(DEADLINE)
    return caught.value


def test_what_a_function_returns_comes_back(shared: RayProcLauncher) -> None:
    assert shared.call(lambda a, *, b: (a, b, os.getpid() != 1), 2, b="x").result(DEADLINE) == (2, "x", True)


def test_an_object_ref_has_the_answer_too(shared: RayProcLauncher) -> None:
    call = shared.call(sorted, "cab")
    assert ray.get(call.ref, timeout=DEADLINE) == ["a", "b", "c"]
    assert call.exit_port.done()


def test_the_object_ref_of_a_call_that_fails_raises(shared: RayProcLauncher) -> None:
    with pytest.raises(CallError, match="the call raised ZeroDivisionError"):
        ray.get(shared.call(divmod, 1, 0).ref, timeout=DEADLINE)


def test_what_it_raises_is_raised_here_with_its_traceback_as_the_cause(shared: RayProcLauncher) -> None:
    def fail() -> None:
        raise LookupError("no such luck")

    with pytest.raises(LookupError, match=r"^no such luck$") as caught:
        shared.call(fail).result(DEADLINE)
    assert isinstance(caught.value.__cause__, RemoteError)
    assert "in fail\n" in str(caught.value.__cause__)


def test_an_exception_that_cannot_be_unpickled_is_told_in_words(shared: RayProcLauncher) -> None:
    class TwoPartsError(Exception):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(one + two)

    def fail() -> None:
        raise TwoPartsError("hal", "ves")

    error = no_answer(shared, fail)
    assert str(error).endswith("TwoPartsError: halves")
    assert "in fail\n" in str(error.__cause__)


@pytest.mark.parametrize(
    "fn, args, kind, words",
    [
        (os._exit, (3,), Exited(3), "the call has left no answer: its proc exited with code 3"),
        (sys.exit, ("enough",), Exited(1), "its proc exited with code 1\nenough"),
        (os.kill, (0, signal.SIGKILL), Signaled(signal.SIGKILL), r"killed by SIGKILL \(for want of memory, perhaps\)"),
        (threading.Lock, (), Exited(1), "what the call returned cannot be pickled: lock: "),
    ],
)
def test_an_end_without_an_answer_is_told_with_how_it_ended(
    shared: RayProcLauncher, fn: Any, args: tuple[Any, ...], kind: object, words: str
) -> None:
    with pytest.raises(CallError, match=words) as caught:
        shared.call(fn, *args).result(DEADLINE)
    assert caught.value.result is not None
    assert caught.value.result.kind == kind


def test_a_segmentation_fault_is_told(shared: RayProcLauncher) -> None:
    def crash() -> None:
        import ctypes  # noqa: PLC0415  # there, not here

        ctypes.string_at(0)

    error = no_answer(shared, crash, rlimits={"core": 0})
    assert "its proc was killed by SIGSEGV" in str(error)


def test_a_call_that_needs_more_memory_than_it_may_have_raises(shared: RayProcLauncher) -> None:
    with pytest.raises(MemoryError):
        shared.call_with(bytearray, [1 << 34], rlimits={"as": 1 << 31}).result(DEADLINE)


def test_a_call_that_the_kernel_kills_for_want_of_memory_is_told(shared: RayProcLauncher) -> None:
    def take_all(group: Path) -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        taken = []
        while True:
            taken.append(b"1" * (8 << 20))

    with cgroup("memory") as group:
        group.limit_memory(100 << 20)
        error = no_answer(shared, take_all, group.path)
        assert group.killed_for_memory() == 1
    assert str(error) == "the call has left no answer: its proc was killed by SIGKILL (for want of memory, perhaps)"


def test_a_call_that_cannot_be_started_is_told(shared: RayProcLauncher) -> None:
    error = no_answer(shared, os.getpid, program="/no/such/python")
    assert error.result is not None
    assert isinstance(error.result.kind, Failed)
    assert "program not found on the node" in str(error)


def test_large_arguments_and_values_go_both_ways(shared: RayProcLauncher) -> None:
    assert shared.call(lambda data: data[::-1], b"a" * LARGE + b"b").result(DEADLINE) == b"b" + b"a" * LARGE


def test_large_arguments_arrive_whole_though_the_agent_dies(launcher: RayProcLauncher, nodes: Nodes) -> None:
    with living(launcher, "other", LaunchOptions(program="sleep", args=["9999"], placement=nodes.on("a"))):
        pid_of(launcher, "other")
        agent_pid = ray.get(agents_of(launcher.session)[0].info.remote())["pid"]
        call = launcher.call_with(len, [b"a" * 30_000_000], placement=nodes.on("a"))
        os.kill(agent_pid, signal.SIGKILL)
        assert call.result(DEADLINE) == 30_000_000


def test_large_arguments_are_let_go_of_with_the_call(shared: RayProcLauncher) -> None:
    def used() -> float:
        total, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
        return float(total["object_store_memory"] - free.get("object_store_memory", 0))

    until(lambda: used() < LARGE, "the store is empty", DEADLINE)
    call = shared.call(len, b"a" * 5 * LARGE)
    assert call.result(DEADLINE) == 5 * LARGE
    del call
    until(lambda: used() < LARGE, "the store is empty again", DEADLINE)


def test_a_call_runs_where_its_placement_says(shared: RayProcLauncher, nodes: Nodes) -> None:
    call = shared.call_with(os.getcwd, proc_id="where", placement=nodes.on("b"))
    call.result(DEADLINE)
    assert shared.info("where").node_id == nodes.ids()["b"]


def test_a_call_waits_no_longer_than_it_is_told_to(shared: RayProcLauncher) -> None:
    call = shared.call(time.sleep, 9999)
    with pytest.raises(TimeoutError):
        call.result(0.1)
    call.kill()
    with pytest.raises(CallError):
        call.result(DEADLINE)


def test_the_value_of_a_proc_that_raised_raises(shared: RayProcLauncher) -> None:
    assert not ended(shared.launch("raises", LaunchOptions.from_callable(divmod, 1, 0)).exit_port).ok
    with pytest.raises(ZeroDivisionError):
        shared.value("raises")


def test_modules_are_found_where_the_driver_finds_them(
    shared: RayProcLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "found_here_only.py").write_text("def name():\n    return __name__\n")
    monkeypatch.syspath_prepend(tmp_path)
    import found_here_only  # type: ignore[import-not-found]  # noqa: PLC0415  # see above

    assert shared.call(found_here_only.name).result(DEADLINE) == "found_here_only"


@pytest.mark.parametrize(
    "error, words, given",
    [
        (TypeError, "fn must be callable", lambda launcher: launcher.call("print")),
        (TypeError, "cannot be pickled", lambda launcher: launcher.call(print, threading.Lock())),
        (TypeError, "an argument is an ObjectRef: pass the value", lambda launcher: launcher.call(len, ray.put(b""))),
        (ValueError, "max_restarts: a call sets this itself", lambda launcher: launcher.call_with(len, max_restarts=1)),
        (TypeError, "nonsense", lambda launcher: launcher.call_with(len, nonsense=1)),
    ],
)
def test_bad_calls_are_refused_at_once(shared: RayProcLauncher, error: type[Exception], words: str, given: Any) -> None:
    with pytest.raises(error, match=words):
        given(shared)


def test_a_soft_limit_reaches_the_call(shared: RayProcLauncher) -> None:
    call = shared.call_with(resource.getrlimit, [resource.RLIMIT_NOFILE], rlimits={"nofile": (99, 99)})
    assert call.result(DEADLINE) == (99, 99)


def test_a_call_that_finds_no_place_is_told(shared: RayProcLauncher) -> None:
    error = no_answer(shared, os.getpid, placement=Placement(num_cpus=99, timeout=0))
    assert "its proc failed" in str(error)
