"""Each change of a proc's state is told, to an iterator and to callbacks, until the session ends."""

from __future__ import annotations

import itertools
import logging
import queue
import threading

import pytest
from detached_rig import attached, kill_spawner
from node_rig import until
from ray_rig import DEADLINE, Nodes, ended, pid_of, shell, starts_writing

from ray_launcher import ProcEvent, ProcLauncherError, RayProcLauncher, Signaled

STATES = ["PENDING", "STARTING", "RUNNING", "TERMINATING", "EXITED"]


def test_the_changes_of_a_procs_state_are_told_as_they_come(name: str) -> None:
    launcher = attached(name)
    events = launcher.events()
    port = launcher.launch("a", shell("sleep 9999")).exit_port
    pid_of(launcher, "a")
    launcher.kill("a")
    ended(port)
    seen = list(itertools.islice(events, 5))
    assert [event.state for event in seen] == ["PENDING", "STARTING", "RUNNING", "TERMINATING", "EXITED"]
    assert {event.proc_id for event in seen} == {"a"}
    assert seen[-1].result is not None
    assert seen[-1].result.kind == Signaled(9)


def test_the_changes_of_the_past_are_remembered(name: str) -> None:
    launcher = attached(name)
    ended(launcher.launch("a", shell("exit")).exit_port)
    states = [event.state for event in launcher.events(follow=False)]
    assert (states[0], states[-1]) == ("PENDING", "EXITED")


def test_changes_are_told_across_the_death_of_the_spawner(name: str) -> None:
    launcher = attached(name)
    events = launcher.events()
    port = launcher.launch("a", shell("echo up; exec sleep 9999")).exit_port
    starts_writing(launcher, "a")
    kill_spawner(name)
    launcher.kill("a")
    ended(port)
    assert any(event.state == "EXITED" for event in itertools.islice(events, 20))


def test_changes_end_with_the_session(name: str) -> None:
    launcher = attached(name)
    events = launcher.events()
    launcher.end(0)
    assert list(events) == []


def test_the_end_of_a_session_can_be_waited_for_across_the_death_of_its_spawner(name: str) -> None:
    launcher = attached(name)
    over = threading.Thread(target=RayProcLauncher.find(name).wait_until_over)
    over.start()
    kill_spawner(name)
    launcher.launch("a", shell("exit")).exit_port.wait(DEADLINE)
    assert over.is_alive()
    launcher.end(0)
    over.join(DEADLINE)
    assert not over.is_alive()


# -- callbacks --------------------------------------------------------------------------------------------------------


class Heard:
    """What a callback has been told."""

    def __init__(self) -> None:
        self._events: queue.Queue[ProcEvent] = queue.Queue()

    def __call__(self, event: ProcEvent) -> None:
        self._events.put(event)

    def until(self, state: str) -> list[str]:
        """The states that come, this one included."""
        states: list[str] = []
        while state not in states:
            states.append(self._events.get(timeout=DEADLINE).state)
        return states

    def nothing_more(self) -> bool:
        return self._events.empty()


def test_a_callback_is_called_for_each_change(name: str) -> None:
    launcher, heard = attached(name), Heard()
    launcher.on_event(heard)
    launcher.launch("a", shell("sleep 9999"))
    pid_of(launcher, "a")
    launcher.kill("a")
    assert heard.until("EXITED") == STATES


def test_a_callback_hears_of_the_past_if_it_asks_for_it(name: str) -> None:
    launcher, heard = attached(name), Heard()
    ended(launcher.launch("a", shell("exit")).exit_port)
    launcher.on_event(heard, past=True)
    assert heard.until("EXITED")[0] == "PENDING"


def test_a_callback_is_not_called_after_it_was_stopped(name: str) -> None:
    launcher, stopped, heard = attached(name), Heard(), Heard()
    stop = launcher.on_event(stopped)
    launcher.on_event(heard)
    stop()
    launcher.launch("a", shell("exit"))
    heard.until("EXITED")
    assert stopped.nothing_more()


def test_what_a_callback_raises_is_logged_and_the_next_change_is_told(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    launcher, heard = attached(name), Heard()

    def fails(event: ProcEvent) -> None:
        heard(event)
        raise RuntimeError(f"no wish to hear of {event.state}")

    launcher.on_event(fails)
    with caplog.at_level(logging.ERROR):
        launcher.launch("a", shell("exit"))
        heard.until("EXITED")
        until(lambda: "no wish to hear of EXITED" in caplog.text, "it is logged")


def test_the_ends_that_closing_brings_are_told_to_callbacks(nodes: Nodes) -> None:
    heard = Heard()
    with RayProcLauncher() as launcher:
        launcher.on_event(heard)
        launcher.launch("a", shell("sleep 9999"))
        pid_of(launcher, "a")
    assert heard.until("EXITED")


def test_a_callback_is_called_across_the_death_of_the_spawner(name: str) -> None:
    launcher, heard = attached(name), Heard()
    launcher.on_event(heard)
    launcher.launch("a", shell("echo up; exec sleep 9999"))
    starts_writing(launcher, "a")
    kill_spawner(name)
    launcher.kill("a")
    assert heard.until("EXITED")


def test_what_is_no_function_cannot_be_called_back(name: str) -> None:
    with pytest.raises(TypeError, match="fn must be a function of a ProcEvent, not str"):
        attached(name).on_event("print")  # type: ignore[arg-type]


def test_a_launcher_that_is_closed_calls_nobody_back(name: str) -> None:
    launcher = attached(name)
    launcher.close()
    with pytest.raises(ProcLauncherError, match="closed"):
        launcher.on_event(print)
