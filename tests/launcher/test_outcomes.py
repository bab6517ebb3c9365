"""Whatever a spawner does, each launch has exactly one result, in the right words."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import ray
from odd_spawners import ODDITIES, OddSpawner

from ray_launcher import ActorProcLauncher, Exited, ExitPort, Failed, LaunchOptions, ProcExitResult, start_spawner

DEADLINE = 60.0

RAISED = "spawner raised: "
JUNK = "failed to decode exit result: "
CLOSED = "exit port closed ("

WORDS = {
    "raise": RAISED + "bad image",
    "raise without text": RAISED,
    "raise wordless": RAISED + "<error formatting exception>",
    "raise two arguments": RAISED + "code 3: no disk",
    "raise a lock": RAISED + "locked up",
    "raise homebound": RAISED + "far away",
    "raise SystemExit": RAISED + "3",
    "raise KeyboardInterrupt": RAISED + "KeyboardInterrupt()",
    "raise CancelledError": CLOSED + "the launch was cancelled)",
    "raise a Ray error": RAISED + "of its own",
    "raise another's cancellation": RAISED + "of a task of its own",
    "raise a surrogate": RAISED + r"caf\udce9",
    "raise StopIteration": RAISED + "coroutine raised StopIteration",
    "return None": JUNK + "ExitReport must have the attribute exit_code, and this 'NoneType' object has not",
    "return text": JUNK + "ExitReport must have the attribute exit_code, and this 'str' object has not",
    "return a dict": JUNK + "ExitReport must have the attribute exit_code, and this 'dict' object has not",
    "return a text code": JUNK + "extract exit_code: TypeError: 'str' object cannot be interpreted as an integer",
    "return a lock": JUNK + "the spawner returned a SimpleNamespace that cannot be pickled",
    "return homebound": JUNK,
    "return an exception": JUNK + "ExitReport must have the attribute exit_code",
    "return look-alike": "",
}
EXACT = {name for name in WORDS if name.startswith("raise")}


def an_id() -> str:
    return f"proc-{uuid.uuid4().hex}"


def opts(program: str, *args: str) -> LaunchOptions:
    return LaunchOptions(program=program, args=args)


def launch_one(launcher: ActorProcLauncher, program: str) -> ExitPort:
    return launcher.launch(an_id(), opts(program)).exit_port


def launch_in_batch(launcher: ActorProcLauncher, program: str) -> ExitPort:
    proc_id = an_id()
    return launcher.launch_many({proc_id: opts(program), an_id(): opts("at_once")})[proc_id].exit_port


def reason(port: ExitPort) -> str:
    result = port.wait(DEADLINE)
    assert isinstance(result.kind, Failed), result
    return result.kind.reason


def test_every_oddity_is_tested() -> None:
    assert set(WORDS) == set(ODDITIES)


@pytest.mark.parametrize("launch", [launch_one, launch_in_batch])
@pytest.mark.parametrize("program", WORDS)
def test_a_spawner_that_misbehaves_gives_one_result(
    odd: ActorProcLauncher,
    until: Callable[[Callable[[], object], str], None],
    launch: Callable[[ActorProcLauncher, str], ExitPort],
    program: str,
) -> None:
    port = launch(odd, program)
    called: list[ProcExitResult] = []
    port.add_done_callback(called.append)
    result = port.wait(DEADLINE)
    if program == "return look-alike":
        assert result == ProcExitResult(Exited(5), ["last"])
    else:
        assert isinstance(result.kind, Failed)
        assert result.stderr_tail is None
        assert result.kind.reason.startswith(WORDS[program])
        assert program not in EXACT or result.kind.reason == WORDS[program]
        assert "\n" not in result.kind.reason
    port.add_done_callback(called.append)
    until(lambda: len(called) == 2, "both callbacks are called")
    assert called == [result, result]
    assert odd.launch(an_id(), opts("at_once")).exit_port.wait(DEADLINE).ok, "the spawner goes on serving"


def test_what_only_the_spawner_can_unpickle_is_told_in_words(odd: ActorProcLauncher) -> None:
    for launch in launch_one, launch_in_batch:
        assert reason(launch(odd, "raise homebound")) == RAISED + "far away"
    assert "not at home here" in reason(launch_in_batch(odd, "return homebound"))
    assert "not at home here" in reason(launch_one(odd, "return homebound"))


def test_terminate_and_kill_that_raise_leave_the_spawner_and_its_procs_alone(
    odd: ActorProcLauncher, shared_odd: Any
) -> None:
    hanging = odd.launch("hanging", opts("hang")).exit_port
    ref = hanging.ref  # early: Ray may lose a cancel that overtakes its task
    odd.terminate("hanging", 1)
    odd.kill("hanging")
    assert odd.launch(an_id(), opts("at_once")).exit_port.wait(DEADLINE).ok
    assert not hanging.done()
    ray.cancel(ref)
    assert reason(hanging) == CLOSED + "the launch was cancelled)"


# -- the spawner goes away ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["exit_actor", "die"])
@pytest.mark.parametrize("launch", [launch_one, launch_in_batch])
def test_a_launch_that_ends_the_actor_closes_every_open_port(
    start: Callable[..., Any], launch: Callable[[ActorProcLauncher, str], ExitPort], end: str
) -> None:
    launcher = ActorProcLauncher(start(OddSpawner))
    ports = [launch(launcher, program) for program in ("hang", "hang", end, "hang")]
    assert all(reason(port).startswith(CLOSED) for port in ports)
    late = launcher.launch("late", opts("at_once"))
    assert reason(late.exit_port).startswith(CLOSED)


def test_killing_the_spawner_closes_every_open_port_once(
    start: Callable[..., Any], until: Callable[[Callable[[], object], str], None]
) -> None:
    spawner = start(OddSpawner)
    launcher = ActorProcLauncher(spawner)
    ended = launcher.launch("ended", opts("at_once")).exit_port
    assert ended.wait(DEADLINE).ok
    ports = [launcher.launch(str(index), opts("hang")).exit_port for index in range(20)]
    batch = launcher.launch_many({an_id(): opts("hang") for _ in range(20)})
    ports += [launched.exit_port for launched in batch.values()]
    called: list[ProcExitResult] = []
    for port in ports:
        port.add_done_callback(called.append)
    until(lambda: len(ray.get(spawner.seen.remote())[0]) == 41, "all launches have begun")
    ray.kill(spawner)
    assert all(reason(port).startswith(CLOSED) for port in ports)
    until(lambda: len(called) == 40, "every callback is called")
    assert ended.wait().ok
    until(lambda: not launcher.active_procs, "nothing is active")
    time.sleep(0.2)
    assert len(called) == 40


def test_a_spawner_whose_constructor_raises_closes_the_port(cluster: str) -> None:
    launcher = ActorProcLauncher(start_spawner(OddSpawner, fail="no licence"))
    text = reason(launcher.launch("a", opts("at_once")).exit_port)
    assert text.startswith(CLOSED)
    assert "no licence" in text


# -- cancelling -----------------------------------------------------------------------------------------------------


def test_a_launch_that_is_cancelled_while_it_runs_reaches_the_spawner_as_a_cancellation(
    odd: ActorProcLauncher, shared_odd: Any, until: Callable[[Callable[[], object], str], None]
) -> None:
    proc_id = an_id()
    port = odd.launch(proc_id, opts("hang")).exit_port
    ref = port.ref  # early: Ray may lose a cancel that overtakes its task
    until(lambda: proc_id in ray.get(shared_odd.seen.remote())[0], "the launch has begun")
    ray.cancel(ref)
    assert reason(port) == CLOSED + "the launch was cancelled)"
    until(lambda: proc_id in ray.get(shared_odd.seen.remote())[1], "the spawner has been told")


def test_a_launch_that_is_cancelled_before_it_arrives_never_begins_and_blocks_no_later_one(
    start: Callable[..., Any],
) -> None:
    spawner = start(OddSpawner)  # takes a moment: nothing arrives before
    launcher = ActorProcLauncher(spawner)
    launches = [launcher.launch(str(index), opts("at_once")) for index in range(10)]
    for launched in launches[0], launches[3], launches[4], launches[9]:
        ray.cancel(launched.exit_port.ref)
    later = launcher.launch("later", opts("at_once"))
    ends = [launched.exit_port.wait(DEADLINE) for launched in launches]
    assert later.exit_port.wait(DEADLINE).ok
    begun, _ = ray.get(spawner.seen.remote())
    assert [end.ok for end in ends] == [launched.proc_id in begun for launched in launches]
    assert not ends[0].ok
    assert begun == sorted(begun, key=lambda proc_id: 10 if proc_id == "later" else int(proc_id))


def test_launches_that_are_cancelled_while_the_spawner_is_busy_block_no_later_one(odd: ActorProcLauncher) -> None:
    busy = odd.launch(an_id(), opts("block", "1")).exit_port
    cancelled = [odd.launch(an_id(), opts("hang")).exit_port for _ in range(50)]
    refs = [port.ref for port in cancelled]  # first, since Ray may lose a cancel that overtakes its task
    for ref in refs:
        ray.cancel(ref)
    later = odd.launch(an_id(), opts("at_once")).exit_port
    assert later.wait(DEADLINE).ok
    assert busy.wait(DEADLINE).ok
    assert {reason(port) for port in cancelled} == {CLOSED + "the launch was cancelled)"}


def test_a_callback_that_waits_for_a_later_launch_does_not_keep_it_from_starting(
    start: Callable[..., Any], until: Callable[[Callable[[], object], str], None]
) -> None:
    launcher = ActorProcLauncher(start(OddSpawner))
    cancelled = launcher.launch("cancelled", opts("hang")).exit_port
    later = launcher.launch("later", opts("at_once")).exit_port
    seen: list[ProcExitResult] = []
    cancelled.add_done_callback(lambda _: seen.append(later.wait(DEADLINE)))
    ray.cancel(cancelled.ref)
    until(lambda: seen, "the callback returns")
    assert seen[0].ok
