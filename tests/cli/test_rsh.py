"""`ray-launcher rsh`, in ssh's manner: words for a shell, streams and signals passed through, 255 for our failures."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cli_rig import DEADLINE, LAUNCHER, OwnRay, Run, running

from ray_launcher import NodeSummary
from ray_launcher.cli.connect import ConnectError
from ray_launcher.cli.rsh import node_of


@pytest.fixture(scope="module")
def host(own_ray: OwnRay) -> str:
    """Of the one node."""
    return own_ray.address.rpartition(":")[0]


def rsh(*args: str, env: Mapping[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [*LAUNCHER, "rsh", *args]
    return subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=DEADLINE, check=False)


@pytest.fixture
def blocked(number: signal.Signals) -> Iterator[None]:
    """This thread, and what it starts, has the signal blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])


@pytest.fixture
def sleeper(env: dict[str, str], host: str) -> Iterator[Run]:
    """One that tells which of the signals it gets, and ends with code 5."""
    traps = "; ".join(f"trap 'echo got {name}; exit 5' {name}" for name in ("INT", "TERM", "HUP"))
    with running("-n", host, f"{traps}; echo up; while :; do sleep 0.1; done", env=env, verb="rsh") as sleeper:
        sleeper.sees("up\n")
        yield sleeper


def test_words_are_joined_for_a_shell_and_streams_and_exit_code_pass_through(env: dict[str, str], host: str) -> None:
    options = ("-x", "-l", "me", "-o", "BatchMode=yes")
    done = rsh(*options, host, "cat;", "echo", '"a  $((1 + 1))"', ">&2; exit 7", env=env, stdin="in")
    assert (done.stdout, done.stderr, done.returncode) == ("in", "a  2\n", 7)


def test_it_starts_at_home_and_a_user_before_the_host_is_left_out(env: dict[str, str], host: str) -> None:
    assert rsh("-n", f"me@{host}", "pwd", env=env).stdout == f"{Path.home()}\n"


def test_a_command_sees_the_gpus_that_its_node_has(env: dict[str, str], host: str) -> None:
    of_node = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    assert rsh("-n", host, 'echo "${CUDA_VISIBLE_DEVICES-all}"', env=env).stdout == f"{of_node}\n"


def test_no_stdin_is_empty(env: dict[str, str], host: str) -> None:
    assert rsh("-n", host, "cat", env=env, stdin="walnut").stdout == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_command(sleeper: Run, number: signal.Signals) -> None:
    sleeper.interrupt(number)
    assert sleeper.ended() == 5
    assert b"got " + number.name.removeprefix("SIG").encode() in sleeper.out


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_a_signal_that_its_parent_has_blocked_reaches_the_command_as_under_pdsh(
    blocked: None, sleeper: Run, number: signal.Signals
) -> None:
    sleeper.interrupt(number)
    assert sleeper.ended() == 5


@pytest.mark.parametrize(
    "args, words",
    [
        (("nowhere.invalid", "true"), "no node of the cluster is called nowhere.invalid; there are "),
        (("--nonsense", "host", "true"), "No such option"),
        (("host",), "Missing argument 'COMMAND"),
    ],
)
def test_what_goes_wrong_here_is_255(env: dict[str, str], args: tuple[str, ...], words: str) -> None:
    done = rsh(*args, env=env)
    assert done.returncode == 255
    assert words in done.stderr


def test_without_a_cluster_it_is_255() -> None:
    done = rsh("host", "true", env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"})
    assert (done.returncode, ":1: the connection was refused" in done.stderr) == (255, True), done.stderr


def summary(node_id: str, ip: str, hostname: str) -> NodeSummary:
    return NodeSummary(node_id, ip, hostname, {}, 1, 1, 0, 0, 0, 0, {})


@pytest.mark.parametrize("host", ["aa", "10.0.0.1", "one.site", "one", "me@one"])
def test_a_host_is_named_by_id_address_or_name(host: str) -> None:
    assert node_of(host, [summary("aa", "10.0.0.1", "one.site"), summary("bb", "10.0.0.2", "two.site")]) == "aa"


def test_a_name_that_several_nodes_have_is_refused() -> None:
    with pytest.raises(ConnectError, match=r"2 nodes are called vm; give one's address or id: aa \(10.0.0.1\), bb"):
        node_of("vm", [summary("aa", "10.0.0.1", "vm"), summary("bb", "10.0.0.2", "vm")])
