"""Terminate and kill, checks at the door, and what is sent when."""

from __future__ import annotations

import math
import signal
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import ray

from ray_launcher import (
    ActorProcLauncher,
    ExitReport,
    KillError,
    LaunchError,
    LaunchOptions,
    ProcLauncher,
    ProcSpawner,
    RayProcLauncher,
    Signaled,
    TerminateError,
    start_spawner,
)
from ray_launcher.testing import Call, FakeSpawner

DEADLINE = 60.0
OPTS = LaunchOptions(program="any")

Until = Callable[[Callable[[], object], str], None]


def an_id() -> str:
    return f"proc-{uuid.uuid4().hex}"


@pytest.fixture
def sent(shared_fake: Any, fake: ActorProcLauncher) -> Callable[[], list[Call]]:
    """The calls that have reached the spawner since the test began, and all that were sent before have."""
    before = len(ray.get(shared_fake.calls.remote()))

    def calls() -> list[Call]:
        marker = an_id()
        fake.launch(marker, OPTS)
        fake.kill(marker)
        calls: list[Call] = ray.get(shared_fake.calls.remote())[before:]
        while not calls or calls[-1] != Call("kill", marker):
            calls = ray.get(shared_fake.calls.remote())[before:]
        return calls[:-2]

    return calls


# -- the three verbs ------------------------------------------------------------------------------------------------


def test_the_spawner_gets_what_the_launcher_was_given(fake: ActorProcLauncher, sent: Callable[[], list[Call]]) -> None:
    proc_id = "an id with spaces / and \N{SNOWMAN}" + an_id()
    opts = LaunchOptions(program="p", args=["\udcff", ""], env={"A": "b"}, tail_lines=7)
    fake.launch(proc_id, opts)
    fake.terminate(proc_id, 3)
    assert sent() == [Call("launch", proc_id, opts=opts), Call("terminate", proc_id, timeout_secs=3.0)]


@pytest.mark.parametrize("timeout", [0, 0.5, math.inf, True + 1])
def test_a_timeout_travels_as_it_is(fake: ActorProcLauncher, sent: Callable[[], list[Call]], timeout: float) -> None:
    proc_id = an_id()
    fake.launch(proc_id, OPTS)
    fake.terminate(proc_id, timeout)
    assert sent()[-1] == Call("terminate", proc_id, timeout_secs=timeout)


def test_requests_for_finished_ids_are_silent_and_send_nothing(
    fake: ActorProcLauncher, sent: Callable[[], list[Call]]
) -> None:
    proc_id = an_id()
    port = fake.launch(proc_id, OPTS).exit_port
    fake.kill(proc_id)
    port.wait(DEADLINE)
    for _ in range(3):
        fake.kill(proc_id)
        fake.terminate(proc_id, 0)
    assert [call.verb for call in sent()] == ["launch", "kill"]


def test_requests_for_unknown_ids_reach_the_spawner_which_may_know_them(
    fake: ActorProcLauncher, sent: Callable[[], list[Call]]
) -> None:
    proc_id = an_id()
    fake.kill(proc_id)
    fake.terminate(proc_id, 1)
    assert [call.verb for call in sent()] == ["kill", "terminate"]


def test_another_launcher_of_the_same_spawner_can_end_a_proc_by_its_id(
    fake: ActorProcLauncher, shared_fake: Any, until: Until
) -> None:
    proc_id = an_id()
    port = fake.launch(proc_id, OPTS).exit_port
    until(lambda: any(call.proc_id == proc_id for call in ray.get(shared_fake.calls.remote())), "it has begun")
    ActorProcLauncher(shared_fake).kill(proc_id)
    assert port.wait(DEADLINE).kind == Signaled(signal.SIGKILL)


def test_a_kill_on_its_way_to_a_finished_launch_does_not_hit_the_next_one(
    fake: ActorProcLauncher, shared_fake: Any, sent: Callable[[], list[Call]]
) -> None:
    proc_id = an_id()
    first = fake.launch(proc_id, OPTS).exit_port
    assert first is not None
    sent()  # it has begun
    stale = dict(fake._open[proc_id])
    ray.get(shared_fake.finish.remote(proc_id, ExitReport(exit_code=0)))
    assert first.wait(DEADLINE).ok
    again = fake.launch(proc_id, OPTS).exit_port
    sent()
    fake._mail.send("request", (proc_id, tuple(stale), None))  # as `kill` does, called before the first one's end
    sent()
    assert not again.done()
    fake.kill(proc_id)
    assert again.wait(DEADLINE).kind == Signaled(signal.SIGKILL)


def test_active_procs_are_those_without_a_result(fake: ActorProcLauncher, until: Until) -> None:
    one, two = an_id(), an_id()
    assert fake.active_procs == frozenset()
    fake.launch(one, OPTS)
    fake.launch_many({two: OPTS})
    assert fake.active_procs == {one, two}
    refused = fake.launch(two, OPTS)
    refused.exit_port.wait(DEADLINE)
    assert fake.active_procs == {one, two}
    fake.kill(one)
    until(lambda: fake.active_procs == {two}, "one has ended")
    fake.kill(two)
    until(lambda: fake.active_procs == frozenset(), "both have ended")


# -- a spawner that is gone -----------------------------------------------------------------------------------------


def test_once_the_spawner_is_gone_requests_are_silent_for_ended_ids_and_raise_for_others(
    start: Callable[..., Any], until: Until
) -> None:
    spawner = start(FakeSpawner)
    launcher = ActorProcLauncher(spawner)
    ports = {proc_id: launcher.launch(proc_id, OPTS).exit_port for proc_id in ("a", "b")}
    ports |= {proc_id: launched.exit_port for proc_id, launched in launcher.launch_many({"c": OPTS}).items()}
    launcher.kill("a")
    ports["a"].wait(DEADLINE)
    ray.kill(spawner)
    for proc_id, port in ports.items():
        port.wait(DEADLINE)
        launcher.kill(proc_id)  # at once: the port has resolved, whatever else is known
        launcher.terminate(proc_id, 1)
    until(lambda: launcher._mail.gone, "the launcher knows")
    for proc_id in ports:
        launcher.kill(proc_id)
        launcher.terminate(proc_id, 1)
    with pytest.raises(KillError, match="the spawner: it is gone"):
        launcher.kill("never launched")
    with pytest.raises(TerminateError, match="the spawner: it is gone"):
        launcher.terminate("never launched", 1)


def test_a_launch_on_a_spawner_that_is_gone_is_an_exit_and_no_error(start: Callable[..., Any], until: Until) -> None:
    spawner = start(FakeSpawner)
    launcher = ActorProcLauncher(spawner)
    ray.kill(spawner)
    until(lambda: launcher._mail.gone, "the launcher knows")
    results = [launcher.launch("a", OPTS), launcher.launch_many({"b": OPTS})["b"]]
    assert all("exit port closed" in str(result.exit_port.wait(DEADLINE)) for result in results)


def test_a_spawner_that_died_is_known_to_be_gone_to_later_launchers_too(
    start: Callable[..., Any], until: Until
) -> None:
    spawner = start(FakeSpawner)
    ray.kill(spawner)
    launcher = ActorProcLauncher(spawner)
    until(lambda: launcher._mail.gone, "the launcher knows")
    with pytest.raises(KillError):
        launcher.kill("a")


# -- messages that cannot be sent -----------------------------------------------------------------------------------


def test_launches_that_ray_refuses_are_exits_and_the_next_go_on(fake: ActorProcLauncher) -> None:
    spawner = fake._mail._spawner

    class Refusing:
        serve_post = property(lambda self: self)

        def remote(self, *args: object) -> None:
            raise OverflowError("too many pending calls")

        def __getattr__(self, name: str) -> Any:
            return getattr(spawner, name)

    proc_id = an_id()
    first = fake.launch(proc_id, OPTS).exit_port
    fake.kill(proc_id)
    first.wait(DEADLINE)
    fake._mail._spawner = Refusing()
    ports = [fake.launch("a", OPTS), *fake.launch_many({"b": OPTS, "c": OPTS}).values()]
    fake.kill("a")
    for launched in ports:
        assert "too many pending calls" in str(launched.exit_port.wait(DEADLINE))
    fake._mail._spawner = spawner
    proc_id = an_id()
    port = fake.launch(proc_id, OPTS).exit_port
    fake.kill(proc_id)
    assert port.wait(DEADLINE).kind == Signaled(signal.SIGKILL)


def test_a_launch_that_is_interrupted_leaves_the_order_whole(
    fake: ActorProcLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("ray_launcher.mail.ExitPort", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fake.launch(an_id(), OPTS)
    assert fake.active_procs == frozenset()
    proc_id = an_id()
    port = fake.launch(proc_id, OPTS).exit_port
    fake.kill(proc_id)
    assert port.wait(DEADLINE).kind == Signaled(signal.SIGKILL)


# -- checks at the door ---------------------------------------------------------------------------------------------


class Unpicklable(LaunchOptions):
    def __reduce__(self) -> str:
        raise RuntimeError("stays here")


BAD_IDS = [(None, TypeError), (3, TypeError), (b"a", TypeError), ("", ValueError), ("a\0b", ValueError)]
BAD_TIMEOUTS = [(None, TypeError), ("1", TypeError), (True, TypeError), (-1, ValueError), (math.nan, ValueError)]


@pytest.mark.parametrize("proc_id, error", [*BAD_IDS, ("a" * 4097, ValueError), ("\udcff", ValueError)])
def test_a_bad_id_is_refused_by_every_verb_and_nothing_is_sent(
    fake: ActorProcLauncher, sent: Callable[[], list[Call]], proc_id: Any, error: type[Exception]
) -> None:
    for ask in (
        lambda: fake.launch(proc_id, OPTS),
        lambda: fake.launch_many({an_id(): OPTS, proc_id: OPTS}),
        lambda: fake.terminate(proc_id, 1),
        lambda: fake.kill(proc_id),
    ):
        with pytest.raises(error, match="proc_id"):
            ask()
    assert sent() == []


@pytest.mark.parametrize("timeout, error", BAD_TIMEOUTS)
def test_a_bad_timeout_is_refused_and_nothing_is_sent(
    fake: ActorProcLauncher, sent: Callable[[], list[Call]], timeout: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="timeout"):
        fake.terminate("a", timeout)
    assert sent() == []


@pytest.mark.parametrize("opts", [None, {}, "true", LaunchOptions])
def test_options_of_another_type_are_refused_and_nothing_is_sent(
    fake: ActorProcLauncher, sent: Callable[[], list[Call]], opts: Any
) -> None:
    with pytest.raises(TypeError, match="opts must be a LaunchOptions"):
        fake.launch(an_id(), opts)
    with pytest.raises(TypeError, match="opts must be a LaunchOptions"):
        fake.launch_many({an_id(): OPTS, an_id(): opts})
    assert sent() == []


def test_options_that_cannot_be_pickled_are_refused_and_nothing_is_sent(
    fake: ActorProcLauncher, sent: Callable[[], list[Call]]
) -> None:
    opts = Unpicklable(program="any")
    with pytest.raises(LaunchError, match="cannot be pickled: stays here"):
        fake.launch(an_id(), opts)
    with pytest.raises(LaunchError, match="cannot be pickled: stays here"):
        fake.launch_many({an_id(): OPTS, an_id(): opts})
    assert fake.active_procs == frozenset()
    assert sent() == []


@pytest.mark.parametrize("launches", [None, [("a", OPTS)], {("a", OPTS)}])
def test_launch_many_takes_a_mapping(fake: ActorProcLauncher, launches: Any) -> None:
    with pytest.raises(TypeError, match="launches must be a mapping"):
        fake.launch_many(launches)


def test_launch_many_of_nothing_sends_nothing(fake: ActorProcLauncher, sent: Callable[[], list[Call]]) -> None:
    empty: Mapping[str, LaunchOptions] = {}
    assert fake.launch_many(empty) == {}
    assert sent() == []


@pytest.mark.parametrize("spawner", [None, "spawner", FakeSpawner, FakeSpawner()])
def test_a_launcher_wants_an_actor_handle(cluster: str, spawner: Any) -> None:
    with pytest.raises(TypeError, match="must be an actor handle"):
        ActorProcLauncher(spawner)


def test_a_launcher_wants_a_spawners_handle(cluster: str) -> None:
    class Other:
        pass

    other: Any = ray.remote(Other)
    with pytest.raises(TypeError, match="no ProcSpawner"):
        ActorProcLauncher(other.options(num_cpus=0).remote())


def test_the_launchers_interface_is_abstract() -> None:
    with pytest.raises(TypeError):
        ProcLauncher()  # type: ignore[abstract]
    assert issubclass(RayProcLauncher, ActorProcLauncher)
    assert issubclass(ActorProcLauncher, ProcLauncher)


# -- start_spawner --------------------------------------------------------------------------------------------------


class Half(ProcSpawner):
    async def launch(self, proc_id: str, opts: LaunchOptions) -> ExitReport:
        return ExitReport()


@pytest.mark.parametrize("spawner_cls", [None, FakeSpawner(), object, ray.remote(FakeSpawner)])
def test_start_spawner_wants_a_subclass_of_procspawner(spawner_cls: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a subclass of ray_launcher\.ProcSpawner"):
        start_spawner(spawner_cls)


def test_start_spawner_names_the_methods_that_are_missing() -> None:
    with pytest.raises(TypeError, match="Half must define kill, terminate"):
        start_spawner(Half)  # type: ignore[type-abstract]


def test_start_spawner_passes_arguments_and_options_on(start: Callable[..., Any]) -> None:
    name = an_id()
    options = {"name": name, "max_concurrency": 5}
    start(FakeSpawner, {"a": ExitReport(exit_code=4)}, default=ValueError("b"), actor_options=options)
    launcher = ActorProcLauncher(ray.get_actor(name))
    assert launcher.launch("a", OPTS).exit_port.wait(DEADLINE).returncode == 4
    assert str(launcher.launch("b", OPTS).exit_port.wait(DEADLINE)) == "failed: spawner raised: b"


# -- close ----------------------------------------------------------------------------------------------------------


def test_a_closed_launcher_refuses_launches(cluster: str) -> None:
    launcher = RayProcLauncher()
    launcher.close()
    for ask in (lambda: launcher.launch("a", OPTS), lambda: launcher.launch_many({"a": OPTS})):
        with pytest.raises(LaunchError, match="closed"):
            ask()
    launcher.close()


# -- the batch ------------------------------------------------------------------------------------------------------


def test_each_of_a_batch_has_its_own_result(start: Callable[..., Any]) -> None:
    scripts = {"a": ExitReport(exit_code=1), "b": ValueError("b"), "c": None, "d": ExitReport(signal=9)}
    launcher = ActorProcLauncher(start(FakeSpawner, scripts))
    launched = launcher.launch_many(dict.fromkeys([*scripts, "e"], OPTS))
    assert list(launched) == ["a", "b", "c", "d", "e"]
    ends = [str(launched[proc_id].exit_port.wait(DEADLINE)) for proc_id in scripts]
    assert ends[:2] == ["exited with code 1", "failed: spawner raised: b"]
    assert ends[2].startswith("failed: failed to decode exit result: ")
    assert ends[3] == "killed by SIGKILL"
    assert not launched["e"].exit_port.done(), "a proc that runs keeps nobody waiting"
    assert launched["a"].proc_id == "a"


def test_refs_asked_for_before_the_batch_has_arrived_give_the_reports(start: Callable[..., Any]) -> None:
    launcher = ActorProcLauncher(start(FakeSpawner, default=ExitReport(exit_code=7)))
    launched = launcher.launch_many({str(index): OPTS for index in range(50)})
    refs = [each.exit_port.ref for each in launched.values()]  # the spawner is not even up yet
    assert ray.get(refs, timeout=DEADLINE) == [ExitReport(exit_code=7)] * 50


def test_refs_asked_for_while_the_batch_ends_give_the_reports(fake: ActorProcLauncher) -> None:
    def kill_all(proc_ids: list[str]) -> None:
        for proc_id in proc_ids:
            fake.kill(proc_id)

    for _ in range(20):
        proc_ids = [an_id() for _ in range(20)]
        launched = fake.launch_many(dict.fromkeys(proc_ids, OPTS))
        ender = threading.Thread(target=kill_all, args=(proc_ids,))
        ender.start()
        refs = [launched[proc_id].exit_port.ref for proc_id in proc_ids]
        ender.join()
        assert ray.get(refs, timeout=DEADLINE) == [ExitReport(signal=9)] * 20


def test_refs_and_ports_of_a_batch_whose_spawner_dies_half_way_all_resolve(start: Callable[..., Any]) -> None:
    spawner = start(FakeSpawner, {"a": ExitReport(exit_code=1)})
    launcher = ActorProcLauncher(spawner)
    launched = launcher.launch_many(dict.fromkeys("abc", OPTS))
    ref = launched["b"].exit_port.ref
    assert launched["a"].exit_port.wait(DEADLINE).returncode == 1
    ray.kill(spawner)
    assert all("exit port closed" in str(launched[proc_id].exit_port.wait(DEADLINE)) for proc_id in "bc")
    assert launched["a"].exit_port.wait().returncode == 1
    for late in (ref, launched["c"].exit_port.ref):
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(late, timeout=DEADLINE)


def test_the_spawner_forgets_a_batch_that_has_been_received(start: Callable[..., Any], until: Until) -> None:
    class Counting(FakeSpawner):
        async def kept(self, launcher: str) -> int:
            return len(self._ray_launcher_desk.account(launcher)._expected)  # type: ignore[attr-defined]

    spawner = start(Counting, default=ExitReport(exit_code=0))
    launcher = ActorProcLauncher(spawner)
    for round_ in range(5):
        launched = launcher.launch_many({f"{round_}/{index}": OPTS for index in range(10)})
        refs = [each.exit_port.ref for each in launched.values()]
        assert all(each.exit_port.wait(DEADLINE).ok for each in launched.values())
        assert len(ray.get(refs)) == 10
    until(lambda: ray.get(spawner.kept.remote(launcher._id)) == 0, "nothing is kept")
