"""Exit ports: one answer, however, wherever, and how often it is asked for."""

from __future__ import annotations

import asyncio
import logging
import math
import pickle
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cloudpickle
import pytest
import ray

from ray_launcher import (
    ActorProcLauncher,
    Exited,
    ExitPort,
    ExitReport,
    LaunchOptions,
    LaunchResult,
    ProcExitResult,
    Signaled,
    StdioHandling,
    decode_exit,
)

DEADLINE = 60.0
OPTS = LaunchOptions(program="any")
REPORT = ExitReport(exit_code=3, stderr_tail=["last words"])
RESULT = ProcExitResult(Exited(3), ["last words"])

Until = Callable[[Callable[[], object], str], None]


@pytest.fixture(params=["launch", "launch_many"])
def launched(fake: ActorProcLauncher, request: pytest.FixtureRequest) -> Iterator[LaunchResult]:
    """A proc that runs until the test, or its end, ends it."""
    proc_id = uuid.uuid4().hex
    yield fake.launch(proc_id, OPTS) if request.param == "launch" else fake.launch_many({proc_id: OPTS})[proc_id]
    fake.kill(proc_id)


@pytest.fixture
def port(launched: LaunchResult) -> ExitPort:
    return launched.exit_port


@pytest.fixture
def finish(launched: LaunchResult, shared_fake: Any) -> Callable[[], None]:
    """Ends the proc with `REPORT`."""
    return lambda: ray.get(shared_fake.finish.remote(launched.proc_id, REPORT))


def test_a_launch_result_says_what_is_known_at_once(launched: LaunchResult) -> None:
    assert launched.pid is None
    assert launched.stdio is StdioHandling.MANAGED_BY_LAUNCHER
    assert launched.started_at.tzinfo is not None
    assert abs(time.time() - launched.started_at.timestamp()) < DEADLINE


# -- wait and done --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_wait_that_times_out_raises_and_changes_nothing(
    port: ExitPort, finish: Callable[[], None], timeout: float
) -> None:
    with pytest.raises(TimeoutError, match=f"had not ended after {timeout} s"):
        port.wait(timeout)
    assert not port.done()
    finish()
    assert port.wait(DEADLINE) == RESULT


def test_asked_late_and_often_the_answer_is_the_same_object(port: ExitPort, finish: Callable[[], None]) -> None:
    finish()
    first = port.wait(DEADLINE)
    assert first == RESULT
    assert port.done()
    assert all(port.wait(timeout) is first for timeout in (None, 0, -1, math.inf) for _ in range(100))


def test_done_is_true_as_soon_as_ray_wait_says_so_and_wait_gives_the_result_then(
    fake: ActorProcLauncher,
) -> None:
    for index in range(100):
        proc_id = f"{index}-{uuid.uuid4().hex}"
        port = fake.launch(proc_id, OPTS).exit_port
        fake.kill(proc_id)
        ready, _ = ray.wait([port.ref], timeout=DEADLINE)
        assert ready == [port.ref]
        assert port.done()
        assert port.wait(0).kind == Signaled(signal.SIGKILL)


def test_many_threads_may_wait_for_one_port(port: ExitPort, finish: Callable[[], None]) -> None:
    seen: list[ProcExitResult] = []
    threads = [threading.Thread(target=lambda: seen.append(port.wait(DEADLINE))) for _ in range(20)]
    for thread in threads:
        thread.start()
    finish()
    for thread in threads:
        thread.join()
    assert seen == [RESULT] * 20


def test_repr_tells_whether_it_is_open(port: ExitPort, finish: Callable[[], None]) -> None:
    assert repr(port) == "<ExitPort open>"
    finish()
    port.wait(DEADLINE)
    assert repr(port) == "<ExitPort done>"


# -- the ref --------------------------------------------------------------------------------------------------------


def test_the_ref_is_one_and_gives_the_raw_report(port: ExitPort, finish: Callable[[], None]) -> None:
    assert port.ref is port.ref
    assert ray.wait([port.ref], timeout=0.05) == ([], [port.ref])
    finish()
    assert ray.get(port.ref, timeout=DEADLINE) == REPORT


def test_the_ref_taken_after_the_end_gives_the_raw_report_too(port: ExitPort, finish: Callable[[], None]) -> None:
    finish()
    port.wait(DEADLINE)
    time.sleep(0.2)  # a batch is released meanwhile
    assert ray.get(port.ref, timeout=DEADLINE) == REPORT


def test_the_ref_is_an_argument_like_any_other(port: ExitPort, finish: Callable[[], None]) -> None:
    @ray.remote(num_cpus=0)
    def code(report: ExitReport) -> int | None:
        return report.exit_code

    later = code.remote(port.ref)
    finish()
    assert ray.get(later, timeout=DEADLINE) == 3


@pytest.mark.parametrize("many", [False, True])
def test_the_ref_of_a_failure_raises_what_the_spawner_raised(odd: ActorProcLauncher, many: bool) -> None:
    proc_id = uuid.uuid4().hex
    opts = LaunchOptions(program="raise")
    launched = odd.launch_many({proc_id: opts})[proc_id] if many else odd.launch(proc_id, opts)
    for _ in range(2):
        with pytest.raises(ValueError, match="bad image"):
            ray.get(launched.exit_port.ref, timeout=DEADLINE)
        launched.exit_port.wait(DEADLINE)


# -- callbacks ------------------------------------------------------------------------------------------------------


def test_each_callback_is_called_once_with_the_result(port: ExitPort, finish: Callable[[], None], until: Until) -> None:
    called: list[tuple[str, ProcExitResult]] = []

    def callback(name: str) -> Callable[[ProcExitResult], None]:
        return lambda result: called.append((name, result))

    for name in "abc":
        port.add_done_callback(callback(name))
    time.sleep(0.1)
    assert called == []
    finish()
    until(lambda: len(called) == 3, "three callbacks are called")
    port.add_done_callback(callback("late"))
    until(lambda: len(called) == 4, "the late one is called")
    time.sleep(0.1)
    assert called == [(name, RESULT) for name in ("a", "b", "c", "late")]


def test_callbacks_added_by_many_threads_around_the_end_are_called_once_each(
    port: ExitPort, finish: Callable[[], None], until: Until
) -> None:
    called: list[int] = []

    def callback(index: int, _: ProcExitResult) -> None:
        called.append(index)

    def add(start: int) -> None:
        for index in range(start, start + 100):
            port.add_done_callback(partial(callback, index))

    threads = [threading.Thread(target=add, args=(100 * index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    finish()
    for thread in threads:
        thread.join()
    until(lambda: len(called) >= 800, "every callback is called")
    time.sleep(0.1)
    assert sorted(called) == list(range(800))


def test_a_callback_that_raises_is_logged_and_disturbs_nobody(
    port: ExitPort, finish: Callable[[], None], until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[ProcExitResult] = []
    for error in (ValueError("out of order"), SystemExit(3), KeyboardInterrupt()):
        port.add_done_callback(partial(_raise, error))
    port.add_done_callback(called.append)
    with caplog.at_level(logging.ERROR, logger="ray_launcher"):
        finish()
        until(lambda: called, "the callback after those that raise is called")
    assert "out of order" in caplog.text
    assert port.wait(0) == RESULT


def _raise(error: BaseException, _: ProcExitResult) -> None:
    raise error


def test_a_callback_may_block_on_ray_and_on_other_ports(
    fake: ActorProcLauncher, shared_fake: Any, port: ExitPort, finish: Callable[[], None], until: Until
) -> None:
    other = uuid.uuid4().hex
    other_port = fake.launch(other, OPTS).exit_port
    seen: list[object] = []

    def callback(_: ProcExitResult) -> None:
        fake.kill(other)
        seen.append(ray.get(shared_fake.calls.remote()) is not None)
        seen.append(other_port.wait(DEADLINE).kind)

    port.add_done_callback(callback)
    finish()
    until(lambda: len(seen) == 2, "the callback has got its answers")
    assert seen == [True, Signaled(signal.SIGKILL)]


# -- await ----------------------------------------------------------------------------------------------------------


def test_a_port_can_be_awaited_by_many_in_several_loops(port: ExitPort, finish: Callable[[], None]) -> None:
    async def wait_for_it() -> ProcExitResult:
        return await port

    async def main() -> list[ProcExitResult]:
        waiting = [asyncio.create_task(wait_for_it()) for _ in range(10)]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(finish)
        return [*(await asyncio.gather(*waiting)), await port]

    assert asyncio.run(main()) == [RESULT] * 11
    assert asyncio.run(wait_for_it()) == RESULT


def test_an_awaiter_that_is_cancelled_disturbs_nobody(port: ExitPort, finish: Callable[[], None]) -> None:
    async def main() -> ProcExitResult:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(port, 0.05)
        stays, goes = (asyncio.ensure_future(port) for _ in range(2))
        await asyncio.sleep(0)
        goes.cancel()
        await asyncio.to_thread(finish)
        with pytest.raises(asyncio.CancelledError):
            await goes
        return await asyncio.wait_for(stays, DEADLINE)

    assert asyncio.run(main()) == RESULT
    assert port.wait(0) == RESULT


# -- elsewhere in the cluster ---------------------------------------------------------------------------------------


def test_a_port_works_in_a_task(port: ExitPort, finish: Callable[[], None]) -> None:
    @ray.remote(num_cpus=0)
    def wait_there(port: ExitPort) -> tuple[bool, ProcExitResult, bool]:
        before = port.done()
        return before, port.wait(DEADLINE), port.done()

    there = wait_there.remote(port)
    assert ray.wait([there], timeout=1.5)[0] == []
    finish()
    assert ray.get(there, timeout=DEADLINE) == (False, RESULT, True)


def test_a_port_works_in_an_actor_that_awaits(port: ExitPort, finish: Callable[[], None]) -> None:
    class Waiter:
        async def wait(self, ports: list[ExitPort]) -> list[ProcExitResult]:
            return await asyncio.gather(*ports)

    waiter: Any = ray.remote(Waiter)
    actor = waiter.options(num_cpus=0).remote()
    there = actor.wait.remote([port, port])
    finish()
    assert ray.get(there, timeout=DEADLINE) == [RESULT, RESULT]
    ray.kill(actor)


def test_a_port_pickled_after_the_end_still_tells(port: ExitPort, finish: Callable[[], None]) -> None:
    finish()
    port.wait(DEADLINE)

    @ray.remote(num_cpus=0)
    def ask(ports: list[ExitPort]) -> list[ProcExitResult]:
        return [port.wait(DEADLINE) for port in ports]

    assert ray.get(ask.remote([port, port]), timeout=DEADLINE) == [RESULT, RESULT]


def test_a_port_survives_rays_pickle_within_one_process(port: ExitPort, finish: Callable[[], None]) -> None:
    copy = pickle.loads(cloudpickle.dumps(port))
    assert copy.ref == port.ref
    finish()
    assert copy.wait(DEADLINE) == port.wait(DEADLINE) == RESULT


# -- many -----------------------------------------------------------------------------------------------------------


def test_5000_ports_wait_without_threads_of_their_own(fake: ActorProcLauncher, shared_fake: Any, until: Until) -> None:
    before = threading.active_count()
    mark = uuid.uuid4().hex
    single = [fake.launch(f"{mark}/{index}", OPTS).exit_port for index in range(2500)]
    batch = fake.launch_many({f"{mark}/{index}": OPTS for index in range(2500, 5000)})
    ports = [*single, *(launched.exit_port for launched in batch.values())]
    called: list[ProcExitResult] = []
    for port in ports:
        port.add_done_callback(called.append)
    assert threading.active_count() <= before + 5
    for index in range(5000):
        fake.kill(f"{mark}/{index}")
    assert {port.wait(DEADLINE).kind for port in ports} == {Signaled(signal.SIGKILL)}
    until(lambda: len(called) == 5000, "every callback is called")
    assert {decode_exit(report).kind for report in ray.get([port.ref for port in ports[::50]])} == {
        Signaled(signal.SIGKILL)
    }
    assert threading.active_count() <= before + 5
