"""What is said of launches that wait, and of how far a run is."""

from __future__ import annotations

from typing import cast

import pytest
from cli_rig import DEADLINE
from node_rig import until

from ray_launcher import ProcInfo, ProcLauncherError, ProcState, RayProcLauncher
from ray_launcher.cli import waiting
from ray_launcher.cli.output import Screen
from ray_launcher.cli.progress import Progress
from ray_launcher.cli.waiting import Watch, reason


class Launcher:
    """Stands in for a launcher: gives what `procs` shall tell, one after the other, and then is gone."""

    def __init__(self, *answers: list[ProcInfo]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def procs(self) -> list[ProcInfo]:
        self.asked += 1
        if not self.answers:
            raise ProcLauncherError("the spawner is gone")
        return self.answers.pop(0)


def info(proc_id: str, state: ProcState, waits_for: str | None = None) -> ProcInfo:
    return ProcInfo(proc_id, state, waits_for=waits_for)


def test_the_reason_that_most_have_is_told_and_all_that_wait_are_counted() -> None:
    infos = [info("a", "PENDING", "x"), info("b", "PENDING", "y"), info("c", "PENDING", "y"), info("d", "RUNNING")]
    assert reason(infos, 4) == "3 of 4 ranks: y"
    assert reason(infos[:1], 1) == "x"


def test_who_is_merely_on_its_way_waits_for_nothing() -> None:
    assert reason([info("a", "PENDING"), info("b", "STARTING"), info("c", "RUNNING", "old")], 3) == ""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LOOK", 0.01)


def watched(launcher: Launcher, *ids: str) -> list[tuple[int, str]]:
    """What a watch tells, once it has ended."""
    told: list[tuple[int, str]] = []
    watch = Watch(cast("RayProcLauncher", launcher), ids, lambda *news: told.append(news), restarts=False)
    until(lambda: not watch._thread.is_alive(), "the end of the watch", DEADLINE)
    return told


def test_a_watch_ends_when_all_have_started_and_looks_at_its_own_procs_only(quick: None) -> None:
    other = info("other", "PENDING", "not ours")
    launcher = Launcher(
        [other],
        [info("a", "PENDING", "cpus"), info("b", "RUNNING"), other],
        [info("a", "RUNNING"), info("b", "EXITED"), other],
        [other],
    )
    assert watched(launcher, "a", "b") == [(0, ""), (1, "1 of 2 ranks: cpus"), (2, ""), (2, "")]
    assert launcher.asked == 3


def test_a_watch_ends_with_its_session_and_then_nothing_waits(quick: None) -> None:
    assert watched(Launcher([info("a", "PENDING", "cpus")]), "a") == [(0, "cpus"), (0, "")]


class Paper(Screen):
    """A screen that notes what is on it."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__(on_closed=lambda _: None)
        self.live_lines = terminal
        self.said: list[str] = []
        self.line = ""

    def say(self, text: str, *, after_control_c: bool = False) -> None:
        self.said.append(text)

    def live(self, text: str) -> None:
        self.line = text


def test_without_a_terminal_each_reason_is_said_once_and_nothing_else() -> None:
    paper = Paper(terminal=False)
    progress = Progress(paper)
    progress.begin(3)
    for why in ("", "cpus", "cpus", "", "cpus", "gpus"):
        progress.started(1, why)
    progress.ended(ok=False)
    assert not progress.stale
    assert paper.said == ["waiting: cpus", "waiting: gpus"]


def test_on_a_terminal_the_line_tells_what_is_waited_for_and_then_how_many_run() -> None:
    paper = Paper(terminal=True)
    progress = Progress(paper)
    progress.begin(3)
    progress.started(0, "cpus")
    progress.show()
    assert paper.line == "ray-launcher: waiting: cpus"
    progress.started(3, "")
    progress.ended(ok=True)
    stale = [progress.stale]
    progress.show()
    assert [*stale, progress.stale] == [True, False]
    assert paper.line == "ray-launcher: 2 of 3 run, 1 ended"
    progress.ended(ok=False)
    progress.show()
    assert paper.line == "ray-launcher: 1 of 3 run, 2 ended (1 failed)"
    progress.finish()
    assert (paper.line, paper.said) == ("", [])


def test_of_a_single_proc_there_is_no_progress_to_tell() -> None:
    paper = Paper(terminal=True)
    progress = Progress(paper)
    progress.begin(1)
    progress.started(1, "")
    progress.show()
    assert paper.line == ""
