"""What an end means to a shell, in numbers and words."""

from __future__ import annotations

import signal

import pytest

from ray_launcher import Exited, ExitPort, Failed, ProcExitKind, ProcExitResult, Signaled
from ray_launcher.cli import outcome


class NoPort(ExitPort):
    """There is nothing to fetch."""

    def __init__(self) -> None:
        super().__init__(None)


@pytest.mark.parametrize(
    "kind, code",
    [
        (Exited(0), 0),
        (Exited(255), 255),
        (Exited(-1), 125),
        (Exited(256), 125),
        (Signaled(signal.SIGKILL), 137),
        (Signaled(signal.SIGSEGV, True), 139),
        (Failed("no report to be had"), 125),
    ],
)
def test_an_end_becomes_a_shells_exit_code(kind: ProcExitKind, code: int) -> None:
    assert outcome.exit_code(ProcExitResult(kind, []), NoPort()) == code


def test_one_program_that_exits_needs_no_words() -> None:
    assert outcome.summary_of_one(ProcExitResult(Exited(3), ["said it"])) is None


def test_one_program_that_was_killed_or_never_ran_gets_one_line() -> None:
    killed = outcome.summary_of_one(ProcExitResult(Signaled(signal.SIGSEGV, True), ["x"]))
    assert killed == "the program was killed by SIGSEGV (core dumped)"
    assert outcome.summary_of_one(ProcExitResult(Failed("nope: not found"), [])) == "nope: not found"
    assert outcome.summary_of_one(ProcExitResult(Failed(""), [])) == "failed: no reason given"


_LIMIT = "[ray_launcher] time limit of 60 s reached: SIGTERM sent"


@pytest.mark.parametrize(
    "kind, said",
    [
        (Exited(0), "the program exited with code 0"),
        (Exited(3), "the program exited with code 3"),
        (Signaled(signal.SIGTERM), "the program was killed by SIGTERM"),
        (Failed("still alive"), "still alive"),
    ],
)
def test_an_end_by_a_time_limit_is_told_with_it(kind: ProcExitKind, said: str) -> None:
    tail = ["its own", "[ray_launcher] SIGUSR1 sent 5 s before the time limit of 60 s", _LIMIT]
    words = "; SIGUSR1 sent 5 s before the time limit of 60 s; time limit of 60 s reached: SIGTERM sent"
    assert outcome.summary_of_one(ProcExitResult(kind, tail)) == said + words


def test_of_several_that_ended_well_at_their_limit_the_first_is_told_and_the_others_are_counted() -> None:
    result = ProcExitResult(Exited(0), [_LIMIT])
    said = "rank 3 of 4: exited with code 0; time limit of 60 s reached: SIGTERM sent"
    assert outcome.summary_of_limits([], 4) is None
    assert outcome.summary_of_limits([(3, result)], 4) == said
    assert outcome.summary_of_limits([(3, result), (1, result)], 4) == said + "; so of 2 of 4 ranks in all"
    assert outcome.summary_of_limits([(0, result)], 1) == outcome.summary_of_one(result)


def test_a_line_of_the_programs_own_above_others_is_no_limit() -> None:
    assert outcome.summary_of_one(ProcExitResult(Exited(3), [_LIMIT, "said later"])) is None


def test_of_several_the_first_failure_is_told_with_its_last_words_and_the_others_are_named() -> None:
    tail = [f"line {number}" for number in range(30)]
    failures = [(7, ProcExitResult(Exited(3), tail)), (2, ProcExitResult(Exited(1), ["not shown"]))]
    head, *rest = outcome.summary_of_many(failures, 8).splitlines()
    assert head == "2 of 8 ranks failed (2, 7), the first of them rank 7: exited with code 3"
    assert rest == [f"  line {number}" for number in range(10, 30)]


def test_a_single_failure_among_several_is_told_shortly() -> None:
    assert outcome.summary_of_many([(1, ProcExitResult(Exited(1), None))], 4) == "rank 1 of 4: exited with code 1"


def test_the_node_of_the_first_failure_is_told_where_it_is_known() -> None:
    failures = [(7, ProcExitResult(Exited(3), [])), (2, ProcExitResult(Exited(1), []))]
    said = "2 of 8 ranks failed (2, 7), the first of them rank 7 on 10.0.0.7: exited with code 3"
    assert outcome.summary_of_many(failures, 8, "10.0.0.7") == said
    assert outcome.summary_of_many(failures[:1], 8, "10.0.0.7") == "rank 7 of 8 on 10.0.0.7: exited with code 3"


@pytest.mark.parametrize(
    "running, ended, words",
    [
        (1, False, "1 other runs on"),
        (2, False, "2 others run on"),
        (1, True, "terminating 1 other"),
        (2, True, "terminating 2 others"),
    ],
)
def test_what_becomes_of_the_others_is_told_with_the_first_failure(running: int, ended: bool, words: str) -> None:
    result = ProcExitResult(Exited(3), [])
    assert outcome.notice(7, result, running, ended=ended) == f"rank 7: exited with code 3; {words}"


def test_many_failures_are_not_all_named() -> None:
    failures = [(rank, ProcExitResult(Exited(1), [])) for rank in range(100)]
    assert "(0, 1, 2, 3, 4, 5, 6, 7, ...)" in outcome.summary_of_many(failures, 100)
