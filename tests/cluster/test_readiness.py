"""Readiness: how it is told that a proc is ready, and who waits for it."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path
from typing import Any

import pytest
import ray
from node_rig import until
from ray_rig import DEADLINE, ended, procs_of, python, shell
from victims import agent_on, kill_supervisor, restarted_spawner

from ray_launcher import LaunchOptions, NotReadyError, RayProcLauncher, ReadyWhen, UnknownProcError

_names = itertools.count()
pytestmark = pytest.mark.usefixtures("all_free")

SERVER = """if True:
    import pathlib, socket, sys, time
    while not pathlib.Path(sys.argv[2]).exists():
        time.sleep(0.01)
    family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    server = socket.create_server((sys.argv[1], int(sys.argv[3])), family=family)
    time.sleep(9999)
"""


def name() -> str:
    return f"server {next(_names)}"


def is_ready(launcher: RayProcLauncher, proc_id: str) -> bool:
    return {info.proc_id: info.ready for info in launcher.procs()}[proc_id]


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


def looked(launcher: RayProcLauncher, proc_id: str) -> None:
    """Return when it runs and has been found not to be ready."""
    until(lambda: {info.proc_id: info.pid for info in launcher.procs()}[proc_id], "it runs", DEADLINE)
    with pytest.raises(TimeoutError, match="not ready after 1 s"):
        launcher.wait_ready(proc_id, timeout=1)


def test_without_a_probe_a_proc_that_runs_is_ready(shared: RayProcLauncher) -> None:
    proc = shared.launch(name(), shell("exec sleep 9999"))
    shared.wait_ready(proc.proc_id, timeout=DEADLINE)
    assert is_ready(shared, proc.proc_id)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", ""])
def test_a_port_is_ready_when_somebody_listens(shared: RayProcLauncher, tmp_path: Path, host: str) -> None:
    go, port = tmp_path / "go", free_port()
    opts = python(SERVER, ready_when=ReadyWhen(port=port))
    proc = shared.launch(name(), LaunchOptions(**{**vars(opts), "args": [*opts.args, host, str(go), str(port)]}))
    looked(shared, proc.proc_id)
    go.touch()
    shared.wait_ready(proc.proc_id, timeout=DEADLINE)


@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_line_of_the_output_tells(shared: RayProcLauncher, tmp_path: Path, stream: str) -> None:
    go = tmp_path / "go"
    wait = f"until test -e {go}; do sleep 0.01; done"
    script = f"echo not listening; {wait}; printf 'now list' >&{stream}; sleep 0.1; echo 'ening at 80' >&{stream}"
    ready_when = ReadyWhen(log=r"^now listening at \d+$")
    proc = shared.launch(name(), shell(f"{script}; exec sleep 9999", ready_when=ready_when))
    looked(shared, proc.proc_id)
    go.touch()
    shared.wait_ready(proc.proc_id, timeout=DEADLINE)


def test_a_line_is_found_in_much_output(shared: RayProcLauncher) -> None:
    script = "seq 1 1000000; echo ready; exec sleep 9999"
    proc = shared.launch(name(), shell(script, ready_when=ReadyWhen(log="^ready$")))
    shared.wait_ready(proc.proc_id, timeout=DEADLINE)


def test_a_program_tells_in_the_environment_of_the_proc(shared: RayProcLauncher, tmp_path: Path) -> None:
    check = 'test "$PART" = server && test -e go'
    ready_when = ReadyWhen(exec=["sh", "-c", check])
    opts = shell("exec sleep 9999", env={"PART": "server"}, cwd=tmp_path, ready_when=ready_when)
    proc = shared.launch(name(), opts)
    looked(shared, proc.proc_id)
    (tmp_path / "go").touch()
    shared.wait_ready(proc.proc_id, timeout=DEADLINE)


def test_a_probe_that_is_not_there_never_succeeds(shared: RayProcLauncher) -> None:
    proc = shared.launch(name(), shell("exec sleep 9999", ready_when=ReadyWhen(exec=["/no/such/program"])))
    looked(shared, proc.proc_id)


def test_a_probe_goes_with_its_proc(launcher: RayProcLauncher) -> None:
    opts = shell("exec sleep 9998", ready_when=ReadyWhen(exec=["sleep", "9997"]))
    proc = launcher.launch("probed", opts)
    until(lambda: len(procs_of(launcher.session)) == 2, "the proc and its probe run", DEADLINE)
    launcher.kill("probed")
    ended(proc.exit_port)
    until(lambda: not procs_of(launcher.session), "both are gone", DEADLINE)


def test_who_ends_before_it_is_ready_is_not_waited_for(shared: RayProcLauncher) -> None:
    proc = shared.launch(name(), shell("exit 3", ready_when=ReadyWhen(port=1)))
    with pytest.raises(NotReadyError, match="exited with code 3, and was not ready"):
        shared.wait_ready(proc.proc_id, timeout=DEADLINE)


def test_all_are_waited_for(shared: RayProcLauncher) -> None:
    first = shared.launch(name(), shell("exec sleep 9999"))
    second = shared.launch(name(), shell("exec sleep 9999", ready_when=ReadyWhen(log="never")))
    with pytest.raises(TimeoutError, match=f"not ready after 1 s: '{second.proc_id}'$"):
        shared.wait_ready(first.proc_id, second.proc_id, timeout=1)


def test_one_that_is_restarted_is_waited_for(shared: RayProcLauncher) -> None:
    script = "test $RAY_LAUNCHER_RESTART_COUNT = 1 || exit 1; echo ready; exec sleep 9999"
    opts = shell(script, ready_when=ReadyWhen(log="ready"), max_restarts=1, restart_delay=0)
    shared.wait_ready(shared.launch(name(), opts).proc_id, timeout=DEADLINE)


@pytest.mark.parametrize("victim", ["spawner", "agent"])
def test_a_probe_goes_on_after_a_death(launcher: RayProcLauncher, tmp_path: Path, victim: str) -> None:
    opts = shell("exec sleep 9999", ready_when=ReadyWhen(exec=["test", "-e", str(tmp_path / "go")]))
    launcher.launch("probed", opts)
    looked(launcher, "probed")
    if victim == "spawner":
        restarted_spawner(launcher)
    else:
        [info] = launcher.procs()
        ray.kill(agent_on(launcher.session, info.node_id or ""), no_restart=False)
    assert not is_ready(launcher, "probed")
    (tmp_path / "go").touch()
    launcher.wait_ready("probed", timeout=DEADLINE)


def test_what_is_lost_was_not_ready(launcher: RayProcLauncher) -> None:
    launcher.launch("probed", shell("exec sleep 9999", ready_when=ReadyWhen(log="never")))
    looked(launcher, "probed")
    [info] = launcher.procs()
    kill_supervisor(launcher.session, info.node_id or "")
    with pytest.raises(NotReadyError, match="was not ready"):
        launcher.wait_ready("probed", timeout=DEADLINE)


def test_an_unknown_proc_is_told(shared: RayProcLauncher) -> None:
    with pytest.raises(UnknownProcError, match="no proc 'unknown'"):
        shared.wait_ready("unknown")


@pytest.mark.parametrize(
    "fields, error, text",
    [
        ({}, ValueError, "needs one of port, log and exec, not 0"),
        ({"port": 1, "log": "x"}, ValueError, "needs one of port, log and exec, not 2"),
        ({"port": 0}, ValueError, r"ReadyWhen\.port must be 1 to 65535"),
        ({"port": "80"}, TypeError, r"ReadyWhen\.port"),
        ({"log": "("}, ValueError, r"ReadyWhen\.log is no regular expression"),
        ({"log": ""}, ValueError, r"ReadyWhen\.log is empty"),
        ({"exec": "curl"}, TypeError, r"ReadyWhen\.exec must be a list"),
    ],
)
def test_bad_probes_are_refused(fields: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ReadyWhen(**fields)


def test_a_log_that_is_not_kept_cannot_be_searched() -> None:
    with pytest.raises(ValueError, match="leave want_stdio on"):
        LaunchOptions(program="true", want_stdio=False, ready_when=ReadyWhen(log="x"))


def test_ready_when_must_be_one() -> None:
    with pytest.raises(TypeError, match=r"write ReadyWhen\(port=8080\)"):
        LaunchOptions(program="true", ready_when=80)  # type: ignore[arg-type]
