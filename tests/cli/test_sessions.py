"""Procs that are left to a session, and the verbs that find, show and end them, as a shell sees them."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from node_rig import until

from ray_launcher.cli.main import main

#: Seconds within which a command ends.
DEADLINE = 100.0


class Shell:
    """Runs verbs in one session of the cluster, which is ended with it."""

    def __init__(self, env: dict[str, str]) -> None:
        self.session = uuid.uuid4().hex[:8]
        self._env = {**env, "RAY_LAUNCHER_SESSION": self.session}

    def __call__(self, *args: str, code: int = 0) -> str:
        done = self.run(*args)
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout

    def fails(self, *args: str, code: int = 125) -> str:
        """What it says on stderr."""
        done = self.run(*args)
        assert (done.returncode, done.stdout) == (code, "")
        return done.stderr

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ray_launcher", *args]
        return subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=DEADLINE, check=False)

    def json(self, *args: str) -> Any:
        return json.loads(self(*args, "--json"))

    def states(self, *args: str) -> dict[str, str]:
        return {info["proc_id"]: info["state"] for info in self.json("ps", *args)}

    def starts(self, *args: str, name: str) -> None:
        """A run that is detached; its procs run."""
        assert self("run", "-d", "--name", name, *args) == f"{name}\n"
        until(lambda: set(self.states("--state", "running").values()) == {"RUNNING"}, f"{name} runs", DEADLINE)


@pytest.fixture(scope="module")
def shell(own_ray: Any) -> Iterator[Shell]:
    """One for all tests, each of which has names of its own."""
    shell = Shell(own_ray.environ())
    shell("run", "-d", "--rm", "--name", "first", "--", "true")  # what every session has is there before the tests
    until(lambda: shell.states("-a") == {}, "it is forgotten", DEADLINE)
    yield shell
    shell.run("down", shell.session, "-t", "0")


@pytest.fixture(scope="module")
def trained(shell: Shell) -> Shell:
    """It has run `train`."""
    shell("run", "-d", "--name", "train", "--", "true")
    return shell


@pytest.fixture(autouse=True)
def nothing_runs(shell: Shell) -> Iterator[None]:
    """After a test its procs are ended and forgotten."""
    yield
    ids = [info["proc_id"] for info in shell.json("ps", "-a")]
    if ids:
        shell("rm", "--force", *ids)


SLEEP = ("--", "sleep", "9999")


def test_what_is_left_to_a_session_is_listed_and_stopped(shell: Shell) -> None:
    shell.starts("-n", "2", *SLEEP, name="web")
    assert shell.states() == {"web/0": "RUNNING", "web/1": "RUNNING"}
    assert shell("stop", "web/1") == "web/1\n"
    assert shell.states() == {"web/0": "RUNNING"}
    assert shell.states("-a") == {"web/0": "RUNNING", "web/1": "EXITED"}


def test_wait_prints_the_exit_code_and_exits_with_it(shell: Shell) -> None:
    shell("run", "-d", "--name", "bad", "--", "sh", "-c", "exit 7")
    assert shell("wait", "bad", code=7) == "7\n"


def test_wait_for_several_exits_with_the_first_failure(shell: Shell) -> None:
    shell("run", "-d", "-n", "3", "--name", "some", "--", "sh", "-c", "exit $RAY_LAUNCHER_RANK")
    assert shell("wait", "some", code=1) == "0\n1\n2\n"


def test_kill_sends_the_signal_that_is_named(shell: Shell) -> None:
    shell.starts(*SLEEP, name="server")
    shell("kill", "-s", "USR1", "server")
    assert shell("wait", "server", code=138) == "138\n"


def test_kill_kills(shell: Shell) -> None:
    shell.starts(*SLEEP, name="server")
    assert shell("kill", "server") == "server/0\n"
    assert shell("wait", "server", code=137) == "137\n"


def test_stop_all_ends_whatever_lives(shell: Shell) -> None:
    shell.starts(*SLEEP, name="one")
    shell.starts("-j", "1x2", *SLEEP, name="two")
    assert sorted(shell("cancel", "--all").split()) == ["one/0", "two/0", "two/1"]
    assert shell.states() == {}


def test_stop_kills_what_does_not_heed_it_in_time(shell: Shell) -> None:
    shell.starts("--", "sh", "-c", "trap : TERM; while :; do sleep 0.1; done", name="deaf")
    [stopped] = shell.json("stop", "-t", "0.5", "deaf")
    assert stopped["result"]["text"] == "killed by SIGKILL"


def test_rm_forgets_what_has_ended_and_refuses_what_runs(shell: Shell) -> None:
    shell.starts(*SLEEP, name="runs")
    assert "still there: runs/0" in shell.fails("rm", "runs")
    shell("rm", "--force", "runs")
    assert shell.states("-a") == {}


def test_what_is_to_be_removed_at_its_end_is(shell: Shell) -> None:
    shell("run", "-d", "--rm", "--name", "gone", "--", "true")
    until(lambda: shell.states("-a") == {}, "it is forgotten", DEADLINE)


def test_inspect_tells_all_of_an_ended_proc(shell: Shell) -> None:
    shell("run", "-d", "--name", "bad", "--", "sh", "-c", "echo no data >&2; exit 3")
    shell("wait", "bad", code=3)
    [facts] = json.loads(shell("inspect", "bad"))
    assert facts["session"] == shell.session
    assert facts["result"]["code"] == 3
    assert facts["result"]["stderr_tail"] == ["no data"]
    assert facts["exited_at"].endswith("+00:00")


def test_ranks_are_named_by_their_range(shell: Shell) -> None:
    shell.starts("-n", "4", *SLEEP, name="train")
    assert [facts["proc_id"] for facts in json.loads(shell("inspect", "train/1-2"))] == ["train/1", "train/2"]


def test_procs_are_listed_by_gang_state_and_node(shell: Shell) -> None:
    shell.starts("-j", "1x2", *SLEEP, name="gang")
    shell.starts(*SLEEP, name="alone")
    assert set(shell.states("--gang", "gang")) == {"gang/0", "gang/1"}
    assert shell.states("--state", "pending") == {}
    node = json.loads(shell("inspect", "alone"))[0]["node_id"]
    assert set(shell.states("--node", node[:12])) == {"gang/0", "gang/1", "alone/0"}
    assert shell.states("--node", "10.9.9.9") == {}


def test_the_table_of_a_pipe_is_plain(shell: Shell) -> None:
    shell("run", "-d", "--name", "bad", "--", "sh", "-c", "exit 3")
    shell("wait", "bad", code=3)
    headings, row = shell("list", "-a").splitlines()
    assert headings.split() == ["PROC", "STATE", "NODE", "PID", "STARTED", "RESTARTS"]
    assert row.startswith("bad/0  EXITED")
    assert row.endswith("exited with code 3")


def test_events_are_json_lines(shell: Shell) -> None:
    shell("run", "-d", "--name", "one", "--", "true")
    shell("wait", "one")
    events = [json.loads(line) for line in shell("events").splitlines()]
    states = [event["state"] for event in events if event["proc_id"] == "one/0"]
    assert states[0] == "PENDING"
    assert states[-1] == "EXITED"


def test_sessions_are_listed(shell: Shell) -> None:
    shell.starts(*SLEEP, name="one")
    [found] = shell.json("sessions")
    assert (found["name"], found["detached"], found["counts"]["RUNNING"]) == (shell.session, True, 1)


def test_a_run_in_a_session_shows_its_output_and_is_listed(shell: Shell) -> None:
    assert shell("run", "--name", "shown", "--", "echo", "hello") == "hello\n"
    assert shell.states("-a") == {"shown/0": "EXITED"}


def test_a_name_is_made_of_the_program_where_none_is_given(shell: Shell) -> None:
    name = shell("submit", "--", "/bin/true").strip()
    assert name.startswith("true-")
    shell("wait", name)


@pytest.mark.parametrize(
    "args, text",
    [
        (["inspect", "trian"], "no proc, gang or run 'trian': did you mean 'train"),
        (["stop", "-S", "nowhere", "x"], "no session 'nowhere'"),
        (["down", "nowhere"], "no session 'nowhere'"),
        (["kill", "-s", "FOO", "train"], "'FOO' is no signal"),
        (["stop"], "name a proc, gang or run or --all"),
        (["down"], "name a session, or --all"),
        (["wait"], "name a proc, gang or run"),
        (["stop", "-t", "-1", "train"], "'-1' is not a number of seconds"),
        (["pss"], "no verb 'pss'; did you mean 'ps'?"),
        (["ps", "-S", "a b"], "'a b' is not a name"),
        (
            ["ps", "--address", "127.0.0.1:1"],
            ":1: the connection was refused; give the right --address (or RAY_ADDRESS)\n",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_with_the_way_out(trained: Shell, args: list[str], text: str) -> None:
    assert text in trained.fails(*args)


def test_down_ends_a_session_with_its_procs(own_ray: Any) -> None:
    shell = Shell(own_ray.environ())
    shell.starts(*SLEEP, name="one")
    assert shell("down", shell.session, "-t", "0") == f"{shell.session}\n"
    assert shell.json("sessions") == []


@pytest.mark.parametrize("verb", ["ps", "inspect", "wait", "stop", "kill", "rm", "sessions", "events", "down", "run"])
def test_each_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    said = capsys.readouterr().out
    assert f"  ray-launcher {verb} " in said or f"  ray-launcher {verb}\n" in said
    assert verb == "run" or "--json" in said or verb in ("inspect", "events")
