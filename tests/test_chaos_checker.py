"""The chaos run's checker finds what must not be, and excuses what has a cause: fed with made-up stamps and results."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from chaos_checker import Limits, cases
from chaos_lives import PROGRAM, Life, random_life, stream
from chaos_procfs import process
from chaos_records import Blow, Launch, Request, Stamps
from chaos_report import back_to_serving
from chaos_rest import files, orphans
from chaos_run import survivors

from ray_launcher import Exited, Failed, ProcExitKind, ProcExitResult, Signaled

#: Pids of the leader, of its supervisor, and of an escaped grandchild.
LEADER, SUPERVISOR, ESCAPED = 700, 50, 702
#: Launched at 100 on node a1, started at 101, told at 110.
LAUNCHED, STARTED, TOLD = 100.0, 101.0, 110.0
START = f"start {STARTED} {LEADER} 5000 {SUPERVISOR} a1"
ESCAPE = f"escaped {STARTED} {ESCAPED} 5001"
LIMITS = Limits(blow=10, node=60, leftovers=15, request=20, delivery=10, starting=3, clock=0.05)

LOST = Failed("the node's supervisor was lost, and the proc with it")
NODE_LOST = Failed(f"node {'ab' * 28} (127.0.0.1) was lost: no contact")
UNKNOWN_NODE = Failed(f"no living node has the id '{'ab' * 28}'; the cluster's nodes are")
UNSTARTED = Failed("ended on request before it was started")
RUNNING = Failed("proc 'p1' is already running: wait for its exit port, or choose another id")
UNKNOWN = Failed(f"node {'ab' * 28} (127.0.0.1) was lost while the spawner was started again: it ran there, or not")
UNSERVED = Failed("no supervisor on the node: the supervisor did not start")
CLOSED = Failed("exit port closed (the actor died)")


def stamp(word: str, more: object, when: float = 109.0) -> str:
    return f"{word} {when} {LEADER} {more}"


def blow(layer: str, when: float = 105.0, node: str = "a1", pid: int = SUPERVISOR, name: str | None = None) -> Blow:
    return Blow(when, layer, pid, node, name)


def launched(kind: ProcExitKind | None = None, **more: object) -> Launch:
    """A launch that was told so."""
    launch = Launch("p1.1", "p1", Life(), LAUNCHED, "a1")
    if kind is not None:
        launch.results.append((TOLD, ProcExitResult(kind, [])))
    return dataclasses.replace(launch, **more)  # type: ignore[arg-type]


def found(launch: Launch, lines: list[str], *blows: Blow) -> list[str]:
    """The kinds of its violations."""
    [case] = cases([launch], lambda _: Stamps(lines), list(blows), LIMITS)
    return [each.kind for each in case.violations()]


def asked(timeout: float | None, when: float = 105.0) -> dict[str, object]:
    return {"requests": [Request(when, timeout)]}


RIVAL: dict[str, object] = {"rival": True}
ANYWHERE: dict[str, object] = {"node": None}
IGNORES: dict[str, object] = {"life": Life(on_term="ignores")}
RAN, NEVER_RAN, LEFT = [START], list[str](), [START, stamp("exit", 3)]

Case = tuple[ProcExitKind, list[str], dict[str, object], list[Blow]]
EXCUSED: dict[str, Case] = {
    "an exit that was stamped": (Exited(3), LEFT, {}, []),
    "a signal that was stamped": (Signaled(10), [START, stamp("signal", 10)], {}, []),
    "an exit at a TERM that was sent": (Exited(7), [START, stamp("term", 7)], asked(3.0), []),
    "a TERM that was sent": (Signaled(15), RAN, asked(99.0), []),
    "a TERM before TERM was ignored": (Signaled(15), NEVER_RAN, {**IGNORES, **asked(99.0)}, []),
    "a KILL that was sent": (Signaled(9), RAN, asked(None), []),
    "a KILL after the stamp of its end": (Signaled(9), LEFT, asked(None), []),
    "a TERM that escalated": (Signaled(9), RAN, asked(4.0), []),
    "a blow to itself": (Signaled(9), RAN, {}, [blow("proc", name="p1.1")]),
    "its supervisor's loss": (LOST, RAN, {}, [blow("supervisor")]),
    "its supervisor's loss with the guard": (LOST, RAN, {}, [blow("guard")]),
    "its supervisor's loss just after its end": (LOST, LEFT, {}, [blow("supervisor", 109.5)]),
    "its supervisor's loss as it started": (LOST, RAN, {}, [blow("guard", 100.5, pid=51)]),
    "a supervisor's loss before it ran": (LOST, NEVER_RAN, {}, [blow("supervisor", 99.0, pid=51)]),
    "any supervisor's loss for one that may go anywhere": (LOST, NEVER_RAN, ANYWHERE, [blow("guard", node="b1")]),
    "a supervisor's loss as it starts": (UNSERVED, NEVER_RAN, {}, [blow("supervisor", pid=51)]),
    "its node's loss": (NODE_LOST, RAN, {}, [blow("raylet")]),
    "its node's loss, told by its supervisor": (LOST, RAN, {}, [blow("raylet")]),
    "its node's loss, told as a signal": (Signaled(15), RAN, {}, [blow("raylet")]),
    "a node that was gone before": (UNKNOWN_NODE, NEVER_RAN, {}, [blow("raylet", 1.0)]),
    "a spawner's loss as it came, and a node that cannot be asked": (
        UNKNOWN,
        NEVER_RAN,
        ANYWHERE,
        [blow("raylet", 1.0), blow("spawner", 101.0)],
    ),
    "an end before the start": (UNSTARTED, NEVER_RAN, asked(None), []),
    "an id that was another's": (RUNNING, NEVER_RAN, RIVAL, []),
}

WRONG: dict[str, Case] = {
    "an exit that nobody stamped": (Exited(0), RAN, {}, []),
    "another exit than the stamped one": (Exited(4), LEFT, {}, []),
    "an exit without a start": (Exited(0), NEVER_RAN, {}, []),
    "an exit for a stamped signal": (Exited(9), [START, stamp("signal", 9)], {}, []),
    "a signal that nobody sent": (Signaled(9), RAN, {}, []),
    "a TERM that nobody sent": (Signaled(15), RAN, {}, []),
    "a TERM heeded that nobody sent": (Exited(7), [START, stamp("term", 7)], {}, []),
    "a TERM heeded before it was sent": (Exited(7), [START, stamp("term", 7, 104.0)], asked(3.0), []),
    "a TERM for one that ignores it": (Signaled(15), RAN, {**IGNORES, **asked(3.0)}, []),
    "a KILL long before the escalation": (Signaled(9), RAN, asked(6.0), []),
    "a KILL that was sent afterwards": (Signaled(9), RAN, asked(None, TOLD + 1), []),
    "a blow to another proc": (Signaled(9), RAN, {}, [blow("proc", name="p2.1")]),
    "a supervisor's loss without one": (LOST, RAN, {}, []),
    "another supervisor's loss": (LOST, RAN, {}, [blow("supervisor", pid=51)]),
    "another supervisor's loss before it started": (LOST, RAN, {}, [blow("supervisor", 97.0, pid=51)]),
    "another node's supervisor's loss as it started": (LOST, RAN, {}, [blow("supervisor", 100.5, "b1", pid=51)]),
    "its supervisor's loss afterwards": (LOST, RAN, {}, [blow("supervisor", TOLD + 1)]),
    "a supervisor's loss long before": (LOST, NEVER_RAN, {}, [blow("supervisor", 80.0)]),
    "a supervisor's loss on another node": (LOST, NEVER_RAN, {}, [blow("supervisor", node="b1")]),
    "its supervisor's loss long after its end": (
        LOST,
        [f"start 80.0 {LEADER} 1 {SUPERVISOR} a1", stamp("exit", 3, 90.0)],
        {},
        [blow("supervisor")],
    ),
    "an agent's loss": (LOST, RAN, {}, [blow("agent")]),
    "a spawner's loss": (CLOSED, RAN, {}, [blow("spawner")]),
    "a node's loss without one": (NODE_LOST, RAN, {}, [blow("supervisor"), blow("agent")]),
    "another node's loss": (NODE_LOST, RAN, {}, [blow("raylet", node="b1")]),
    "a node that was never lost": (UNKNOWN_NODE, NEVER_RAN, {}, []),
    "a spawner's loss long before": (UNKNOWN, NEVER_RAN, ANYWHERE, [blow("raylet", 1.0), blow("spawner", 80.0)]),
    "a spawner's loss, and every node can be asked": (UNKNOWN, NEVER_RAN, ANYWHERE, [blow("spawner", 101.0)]),
    "no start, but it ran": (UNSTARTED, RAN, asked(None), []),
    "no start, and nobody asked": (UNSTARTED, NEVER_RAN, {}, []),
    "an id that was free": (RUNNING, NEVER_RAN, {}, []),
    "an id that was another's, but it ran": (RUNNING, RAN, RIVAL, []),
    "no supervisor, but it ran": (UNSERVED, RAN, {}, [blow("supervisor")]),
    "no supervisor without its loss": (UNSERVED, NEVER_RAN, {}, []),
}


@pytest.mark.parametrize("case", EXCUSED)
def test_a_result_with_a_cause_is_right(case: str) -> None:
    kind, lines, more, blows = EXCUSED[case]
    assert found(launched(kind, **more), lines, *blows) == []


@pytest.mark.parametrize("case", WRONG)
def test_a_result_without_a_cause_is_wrong(case: str) -> None:
    kind, lines, more, blows = WRONG[case]
    assert "exits_wrong" in found(launched(kind, **more), lines, *blows)


def test_two_starts_are_one_too_many() -> None:
    assert found(launched(Exited(3)), [START, START, stamp("exit", 3)]) == ["started_twice"]


def test_a_port_that_never_resolves_is_a_lost_exit() -> None:
    assert found(launched(), LEFT) == ["exits_lost"]


def test_a_port_that_resolves_late_hung() -> None:
    assert found(launched(Exited(3), hung=True), LEFT) == ["ports_hung"]


def test_a_second_callback_is_a_doubled_exit() -> None:
    launch = launched(Exited(3))
    launch.results *= 2
    assert found(launch, LEFT) == ["exits_doubled"]


def test_another_answer_to_the_same_question_is_a_doubled_exit() -> None:
    same, other = ProcExitResult(Exited(3), []), ProcExitResult(Exited(4), [])
    assert found(launched(Exited(3), second_look=same), LEFT) == []
    assert found(launched(Exited(3), second_look=other), LEFT) == ["exits_doubled"]


@pytest.mark.parametrize("word", ["start", "beat", "exit"])
def test_a_leader_writes_nothing_after_its_result(word: str) -> None:
    late = {"start": f"start 110.2 {LEADER} 1 {SUPERVISOR} a1", "beat": f"beat 110.2 {LEADER}"}
    assert "ran_after_result" in found(launched(Exited(3)), [*LEFT, late.get(word, stamp("exit", 3, 110.2))])


@pytest.mark.parametrize(
    "kind, after, kinds",
    [(Exited(3), 10.0, []), (Exited(3), 16.0, ["ran_after_result"]), (LOST, 1.0, ["ran_after_result"])],
)
def test_what_has_escaped_may_live_a_little_longer_but_not_after_a_failure(
    kind: ProcExitKind, after: float, kinds: list[str]
) -> None:
    lines = [*LEFT, ESCAPE, f"beat {TOLD + after} {ESCAPED}"]
    assert found(launched(kind), lines, blow("supervisor", 109.5)) == kinds


def test_a_survivor_runs_after_its_result() -> None:
    assert found(launched(Exited(3), survivors=["pid 700"]), LEFT) == ["ran_after_result"]


@pytest.mark.parametrize(
    "life, request_, last, kinds",
    [
        (Life(), Request(105.0, None), 124.0, []),
        (Life(), Request(105.0, None), 126.0, ["requests_lost"]),
        (Life(), Request(105.0, 30.0), 126.0, ["requests_lost"]),
        (Life(on_term="ignores"), Request(105.0, 30.0), 126.0, []),
        (Life(on_term="ignores"), Request(105.0, 30.0), 156.0, ["requests_lost"]),
        (Life(on_term="ignores"), Request(105.0, float("inf")), 999.0, []),
    ],
)
def test_a_request_that_is_not_carried_out_is_lost(
    life: Life, request_: Request, last: float, kinds: list[str]
) -> None:
    launch = launched(life=life, requests=[request_], results=[(1000.0, ProcExitResult(Exited(0), []))])
    lines = [START, f"beat {last} {LEADER}", stamp("exit", 0, last)]
    assert found(launch, lines) == kinds


def tailed(kind: ProcExitKind, *numbers: int, lines: int = 5, wanted: int = 3) -> Launch:
    """Its result brings these of its lines."""
    result = ProcExitResult(kind, [f"p1.1 {n}" for n in numbers])
    return launched(life=Life(lines=lines, tail_lines=wanted), results=[(TOLD, result)])


@pytest.mark.parametrize(
    "numbers, kinds",
    [((2, 3, 4), []), ((1, 2, 3), ["exits_wrong"]), ((3, 4), ["exits_wrong"]), ((), ["exits_wrong"])],
)
def test_the_tail_of_a_whole_life_is_its_last_lines(numbers: tuple[int, ...], kinds: list[str]) -> None:
    assert found(tailed(Exited(3), *numbers), LEFT) == kinds


@pytest.mark.parametrize(
    "numbers, kinds", [((), []), ((0, 1), []), ((1, 2, 3), []), ((0, 2), ["exits_wrong"]), ((1, 2), ["exits_wrong"])]
)
def test_the_tail_of_a_life_cut_short_is_the_end_of_what_it_came_to(numbers: tuple[int, ...], kinds: list[str]) -> None:
    assert found(tailed(Signaled(9), *numbers), RAN, blow("proc", name="p1.1")) == kinds


def test_a_tail_of_another_launch_is_wrong() -> None:
    launch = launched(life=Life(lines=1), results=[(TOLD, ProcExitResult(Exited(3), ["p1.0 0"]))])
    assert found(launch, LEFT) == ["exits_wrong"]


def test_a_failure_has_no_tail() -> None:
    assert found(tailed(LOST, 0), RAN, blow("supervisor")) == ["exits_wrong"]


def test_a_violation_brings_its_evidence() -> None:
    blows = [blow("agent"), blow("proc", name="p2.1")]
    [case] = cases([launched(Exited(4))], lambda _: Stamps(LEFT), blows)
    [violation] = case.violations()
    assert violation.name == "p1.1"
    assert violation.evidence["launch"]["results"] == [(TOLD, "exited with code 4")]
    assert violation.evidence["stamps"] == [f"{START} ".strip(), f"exit 109.0 {LEADER} 3"]
    assert [each["layer"] for each in violation.evidence["blows"]] == ["agent"]


def test_serving_again_is_measured_with_what_was_sent_after_the_blow_to_the_same_node() -> None:
    before = launched(Exited(0), launched=104.0)
    elsewhere = launched(Exited(0), launched=105.5, node="b1")
    failed = launched(LOST, launched=105.5)
    after = launched(launched=106.0, results=[(112.0, ProcExitResult(Exited(0), []))])
    assert back_to_serving([before, elsewhere, failed, after], [blow("agent"), blow("supervisor")], "agent") == [7.0]


# -- the stamps, from real programs


def run_life(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", str(PROGRAM), str(directory), "p1.1", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_program_stamps_its_start_and_its_exit(tmp_path: Path) -> None:
    done = run_life(tmp_path, "0.01", "exit 3", "dies", "no", "2")
    stamps = Stamps.read(tmp_path / "p1.1")
    assert done.returncode == 3
    assert [each.word for each in stamps.all] == ["start", "exit"]
    assert list(stamps.ends("exit")) == [3]
    assert done.stderr.splitlines() == ["p1.1 0", "p1.1 1"]


def test_a_program_stamps_the_signal_that_ends_it(tmp_path: Path) -> None:
    assert run_life(tmp_path, "0", "signal 15", "ignores", "no", "0").returncode == -15
    assert list(Stamps.read(tmp_path / "p1.1").ends("signal")) == [15]


def test_a_program_that_never_ran_has_no_stamps(tmp_path: Path) -> None:
    assert Stamps.read(tmp_path / "p1.1").start is None


def test_a_survivor_is_known_by_more_than_its_pid() -> None:
    with subprocess.Popen(["sleep", "9999"]) as sleeper:
        try:
            running = process(sleeper.pid)
            assert running is not None
            start = f"start 1.0 {running.pid} {running.started} 1 a1"
            other = f"start 1.0 {running.pid} {running.started + 1} 1 a1"
            escaped = f"escaped 1.0 {running.pid} {running.started}"
            ended, failed = ProcExitResult(Exited(0), []), ProcExitResult(LOST, [])
            assert survivors(Stamps([start]), ended) == [f"pid {running.pid}"]
            assert survivors(Stamps([other]), ended) == survivors(Stamps([escaped]), ended) == []
            assert survivors(Stamps([escaped]), failed) == [f"pid {running.pid}"]
        finally:
            sleeper.kill()
            sleeper.wait()
    assert survivors(Stamps([start]), ended) == []


@pytest.mark.parametrize(
    "arguments, cookie, count",
    [
        ([], "of-chaos/1a2b", 1),
        ([], "of-chaos-too/1a2b", 0),
        (["{stamps}", "p1.1"], None, 1),
        (["{stamps}-too", "p1.1"], None, 0),
        (["/run/of-chaos-0123456789abcdef"], None, 1),
    ],
)
def test_what_is_left_of_a_session_is_found(
    tmp_path: Path, arguments: list[str], cookie: str | None, count: int
) -> None:
    words = [word.format(stamps=tmp_path) for word in arguments]
    env = {} if cookie is None else {"RAY_LAUNCHER_ID": cookie}
    with subprocess.Popen(["/bin/sh", "-c", "read line", *words], env=env, stdin=subprocess.PIPE) as left:
        assert [f"{left.pid}: /bin/sh" in words for words in orphans("of-chaos", tmp_path)] == [True] * count
        left.communicate()


def test_files_that_are_left_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert list(files()) == []
    socket = tmp_path / f"ray-launcher-{os.geteuid()}" / "of-chaos"
    spare = tmp_path / "ray" / "session_1" / "logs" / "ray-launcher-spare-1-1"
    for path in (socket, spare):
        path.parent.mkdir(parents=True)
        path.touch()
    assert list(files()) == [str(socket), str(spare)]


def test_the_seed_says_what_each_life_is_like() -> None:
    def lives(seed: int) -> list[Life]:
        return [random_life(stream(seed, f"p{n}")) for n in range(50)]

    assert lives(7) == lives(7) != lives(8)
