"""The standard library's Executor over the cluster: its rules, and a process per call."""

from __future__ import annotations

import asyncio
import concurrent.futures
import operator
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_rig import until
from ray_rig import DEADLINE, procs_of

from ray_launcher import CallError, RayProcLauncher
from ray_launcher.integrations.executor import RayProcExecutor


@pytest.fixture
def executor(shared: RayProcLauncher) -> Iterator[RayProcExecutor]:
    with RayProcExecutor(2, launcher=shared) as executor:
        yield executor


def sleep(started: Path) -> None:
    started.touch()
    time.sleep(9999)


def test_map_gives_the_values_in_order(executor: RayProcExecutor) -> None:
    assert list(executor.map(operator.mul, range(8), range(8))) == [number * number for number in range(8)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_items_are_mapped(executor: RayProcExecutor) -> None:
    assert list(executor.map(operator.neg, range(1000))) == [-number for number in range(1000)]


def test_each_call_has_a_process_of_its_own(executor: RayProcExecutor) -> None:
    pids = list(executor.map(lambda _: os.getpid(), range(4)))
    assert len({*pids, os.getpid()}) == 5


def test_as_many_run_at_a_time_as_there_are_workers(executor: RayProcExecutor, tmp_path: Path) -> None:
    futures = [executor.submit(sleep, tmp_path / str(number)) for number in range(3)]
    until(lambda: len(list(tmp_path.iterdir())) == 2, "two run", DEADLINE)
    assert [future.running() for future in futures] == [True, True, False]
    futures[0].cancel()
    until((tmp_path / "2").exists, "the third runs in its place", DEADLINE)
    for future in futures[1:]:
        future.cancel()


def test_an_exception_is_the_futures_and_others_go_on(executor: RayProcExecutor) -> None:
    dead, raising, fine = executor.submit(os._exit, 3), executor.submit(divmod, 1, 0), executor.submit(divmod, 7, 2)
    assert isinstance(dead.exception(DEADLINE), CallError)
    assert isinstance(raising.exception(DEADLINE), ZeroDivisionError)
    assert fine.result(DEADLINE) == (3, 1)


def test_cancelling_a_call_that_runs_kills_it(
    executor: RayProcExecutor, shared: RayProcLauncher, tmp_path: Path
) -> None:
    future = executor.submit(sleep, tmp_path / "started")
    until((tmp_path / "started").exists, "it runs", DEADLINE)
    assert future.cancel()
    assert concurrent.futures.wait([future], DEADLINE).done == {future}
    until(lambda: not procs_of(shared.session), "it is gone", DEADLINE)


def test_a_call_that_has_ended_is_not_cancelled(executor: RayProcExecutor) -> None:
    future = executor.submit(divmod, 7, 2)
    future.result(DEADLINE)
    assert not future.cancel()
    assert not future.cancelled()


def test_asyncio_runs_and_cancels_calls(executor: RayProcExecutor, shared: RayProcLauncher, tmp_path: Path) -> None:
    async def both() -> object:
        loop = asyncio.get_running_loop()
        sleeping = loop.run_in_executor(executor, sleep, tmp_path / "started")
        while not (tmp_path / "started").exists():  # noqa: ASYNC110  # another process makes it
            await asyncio.sleep(0.05)
        sleeping.cancel()
        return await loop.run_in_executor(executor, divmod, 7, 2)

    assert asyncio.run(both()) == (3, 1)
    until(lambda: not procs_of(shared.session), "the other is gone", DEADLINE)


def test_shutdown_waits_for_what_runs_and_cancels_the_rest(shared: RayProcLauncher, tmp_path: Path) -> None:
    def wait() -> str:
        (tmp_path / "started").touch()
        while not (tmp_path / "go").exists():
            time.sleep(0.05)
        return "done"

    executor = RayProcExecutor(1, launcher=shared)
    first, second = executor.submit(wait), executor.submit(wait)
    until((tmp_path / "started").exists, "the first runs", DEADLINE)
    executor.shutdown(wait=False, cancel_futures=True)
    assert second.cancelled()
    (tmp_path / "go").touch()
    executor.shutdown()
    assert first.result(0) == "done"
    with pytest.raises(RuntimeError):
        executor.submit(wait)


def test_an_executor_of_its_own_session_ends_it(shared: RayProcLauncher) -> None:
    with RayProcExecutor(env={"FRUIT": "walnut"}) as executor:
        assert executor.submit(os.getenv, "FRUIT").result(DEADLINE) == "walnut"
        session = executor._launcher.session
    with pytest.raises(Exception, match=session):
        RayProcLauncher.find(session)


@pytest.mark.parametrize("workers, error", [(0, ValueError), (True, TypeError), ("2", TypeError)])
def test_bad_numbers_of_workers_are_refused(shared: RayProcLauncher, workers: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_workers must be"):
        RayProcExecutor(workers, launcher=shared)


def test_bad_fields_are_refused(shared: RayProcLauncher) -> None:
    with pytest.raises(ValueError, match=r"LaunchOptions\.umask"):
        RayProcExecutor(1, launcher=shared, umask=0o1000)
