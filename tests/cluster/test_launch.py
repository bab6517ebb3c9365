"""Launches through the whole chain: how they end, how they fail, what is refused, and what nobody gets to see."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from node_rig import until
from ray_rig import DEADLINE, Driver, Nodes, actors_of, ended, procs_of, shell

from ray_launcher import (
    Exited,
    Failed,
    LaunchOptions,
    Placement,
    ProcBind,
    ProcExitResult,
    RayProcLauncher,
    Signaled,
)

# -- how procs end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 126, 127, 255])
def test_an_exit_code_arrives(shared: RayProcLauncher, code: int) -> None:
    assert ended(shared.launch("exits", shell(f"exit {code}")).exit_port).kind == Exited(code)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGRTMIN + 3])
def test_a_signal_arrives(shared: RayProcLauncher, signum: int) -> None:
    kind = ended(shared.launch("signaled", shell(f"kill -{int(signum)} $$")).exit_port).kind
    assert kind == Signaled(signum, core_dumped=False)


def test_the_tail_of_stderr_arrives(shared: RayProcLauncher) -> None:
    script = "for i in 1 2 3; do echo out; echo line $i >&2; done; printf 'last \\377' >&2; exit 3"
    result = ended(shared.launch("talks", shell(script, tail_lines=3)).exit_port)
    assert result == ProcExitResult(Exited(3), ["line 2", "line 3", "last \ufffd"])


@pytest.mark.parametrize("options", [{"want_stdio": False}, {"tail_lines": 0}])
def test_there_is_no_tail_where_none_is_wanted(shared: RayProcLauncher, options: dict[str, int]) -> None:
    result = ended(shared.launch("talks", shell("echo words >&2; exit 3", None, **options)).exit_port)
    assert result == ProcExitResult(Exited(3), [])


def test_a_tail_is_never_another_launchs(shared: RayProcLauncher) -> None:
    for words in ("first", "", "third"):
        result = ended(shared.launch("again", shell(f"printf '{words}' >&2")).exit_port)
        assert result.stderr_tail == ([words] if words else [])


# -- how launches fail --------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with programs that cannot run."""
    for name, content in {
        "data": b"no program\n",
        "binary": b"\x7fELF\0\0\0\0",
        "odd": b"#!/no/such/interpreter\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o644 if name == "data" else 0o755)
    (tmp_path / "directory").mkdir()
    (tmp_path / "busy").write_bytes(Path("/bin/true").read_bytes())
    (tmp_path / "busy").chmod(0o755)
    return tmp_path


def failure(launcher: RayProcLauncher, opts: LaunchOptions) -> tuple[int | None, str]:
    """(code of the raw report, reason); the id is free again, and the node serves."""
    port = launcher.launch("fails", opts).exit_port
    result = ended(port)
    assert isinstance(result.kind, Failed), result
    assert result.stderr_tail == []
    assert result.returncode is None
    assert ended(launcher.launch("fails", shell("exit 5", opts.placement)).exit_port).kind == Exited(5)
    return ray.get(port.ref).exit_code, result.kind.reason


@pytest.mark.parametrize(
    "program, code, words",
    [
        ("no-such-program", 127, "no-such-program"),
        ("/no/such/program", 127, "/no/such/program"),
        ("{files}/data", 126, "{files}/data"),
        ("{files}/directory", 126, "{files}/directory"),
        ("{files}/binary", 126, "{files}/binary"),
        ("{files}/odd", 126, "{files}/odd"),
        ("{files}/data/below", 127, "{files}/data/below"),
    ],
)
def test_a_program_that_cannot_run_is_named_with_a_shells_code(
    shared: RayProcLauncher, files: Path, program: str, code: int, words: str
) -> None:
    found, reason = failure(shared, LaunchOptions(program=program.format(files=files)))
    assert words.format(files=files) in reason
    assert found == code


def test_a_program_that_is_being_written_fails_as_busy(shared: RayProcLauncher, files: Path) -> None:
    with open(files / "busy", "ab"):
        code, reason = failure(shared, LaunchOptions(program=str(files / "busy")))
    assert code == 126
    assert os.strerror(errno.ETXTBSY).lower() in reason.lower()


@pytest.mark.parametrize("cwd", ["/no/such/directory", "{files}/data"])
def test_a_working_directory_that_is_none_is_named(shared: RayProcLauncher, files: Path, cwd: str) -> None:
    _, reason = failure(shared, shell("exit", cwd=cwd.format(files=files)))
    assert cwd.format(files=files) in reason


@pytest.mark.parametrize("size", [1 << 18, 33 << 20])
def test_arguments_that_are_too_long_for_exec_fail(shared: RayProcLauncher, size: int) -> None:
    code, reason = failure(shared, LaunchOptions(program="true", args=["x" * size]))
    assert code == 126
    assert "too long" in reason
    assert len(reason) < 1000


def test_the_program_is_looked_up_on_the_procs_own_path(shared: RayProcLauncher, files: Path) -> None:
    (files / "busy").rename(files / "mine")
    at = {"PATH": f"/no/such:{files}"}
    assert ended(shared.launch("found", LaunchOptions(program="mine", env=at)).exit_port).ok
    assert failure(shared, LaunchOptions(program="mine"))[0] == 127


def test_a_relative_program_starts_from_the_working_directory(shared: RayProcLauncher, files: Path) -> None:
    opts = LaunchOptions(program="directory/../busy", cwd=str(files))
    assert ended(shared.launch("found", opts).exit_port).ok
    assert failure(shared, dataclasses.replace(opts, cwd="/"))[0] == 127


def test_a_live_id_cannot_be_launched_again_and_goes_on(shared: RayProcLauncher) -> None:
    first = shared.launch("once", shell("echo up; exec sleep 9999"))
    assert next(shared.logs("once", follow=True)) == "up"
    kind = ended(shared.launch("once", shell("exit 3")).exit_port).kind
    assert isinstance(kind, Failed)
    assert "'once' is already running" in kind.reason
    assert not first.exit_port.done()
    shared.kill("once")
    assert ended(first.exit_port).kind == Signaled(signal.SIGKILL, core_dumped=False)
    assert ended(shared.launch("once", shell("exit 3")).exit_port).kind == Exited(3)


# -- limits -------------------------------------------------------------------------------------------------------


def test_bindings_and_limits_reach_the_proc(shared: RayProcLauncher) -> None:
    cpu = str(max(os.sched_getaffinity(0)))
    script = "grep Cpus_allowed_list /proc/self/status; ulimit -Sn; ulimit -Hn; umask; nice; echo >&2; exit 3"
    opts = shell(script, proc_bind=ProcBind(cpus=cpu), rlimits={"nofile": (100, 200)}, umask=0o27, nice=5)
    assert ended(shared.launch("limited", opts).exit_port).kind == Exited(3)
    assert list(shared.logs("limited")) == [f"Cpus_allowed_list:\t{cpu}", "100", "200", "0027", "5"]


def test_a_binding_that_the_node_cannot_give_is_a_failure_that_names_it(shared: RayProcLauncher) -> None:
    kind = ended(shared.launch("bound", shell("exit", proc_bind=ProcBind(cpus="4095"))).exit_port).kind
    assert isinstance(kind, Failed)
    assert "ProcBind.cpus='4095': no CPU 4095 here" in kind.reason


def test_at_its_time_limit_a_proc_ends_and_its_result_says_so(shared: RayProcLauncher) -> None:
    opts = shell(
        "trap 'echo saving' USR1; echo words >&2; while :; do sleep 9999 & wait; done",
        time_limit=3,
        time_limit_grace=60,
        pre_kill_signal=(signal.SIGUSR1, 1.5),
    )
    result = ended(shared.launch("late", opts).exit_port)
    assert result.kind == Signaled(signal.SIGTERM)
    assert result.stderr_tail == [
        "words",
        "[ray_launcher] SIGUSR1 sent 1.5 s before the time limit of 3 s",
        "[ray_launcher] time limit of 3 s reached: SIGTERM sent",
    ]
    assert list(shared.logs("late")) == ["saving"]


# -- what is refused ----------------------------------------------------------------------------------------------


def test_options_of_a_class_that_no_node_has_work(shared: RayProcLauncher) -> None:
    class Here(LaunchOptions):
        pass

    class There(Placement):
        pass

    class Bound(ProcBind):
        pass

    binding = Bound(cpus=str(min(os.sched_getaffinity(0))))
    opts = Here(program="sh", args=["-c", "exit 3"], placement=There(), proc_bind=binding)
    assert ended(shared.launch("of a subclass", opts).exit_port).kind == Exited(3)


def test_a_session_name_that_is_taken_is_refused(shared: RayProcLauncher) -> None:
    with pytest.raises(ValueError, match=f"session '{shared.session}' exists already"):
        RayProcLauncher(shared.session)


def test_a_session_name_is_free_again_after_close(nodes: Nodes) -> None:
    for _ in range(2):
        with RayProcLauncher("again") as launcher:
            assert launcher.session == "again"
            assert actors_of("again")
        until(lambda: not actors_of("again"), "its actors are gone", DEADLINE)


def test_a_runtime_env_that_cannot_be_set_up_closes_the_port_and_says_why(nodes: Nodes) -> None:
    with RayProcLauncher(runtime_env={"working_dir": "file:///no/such/file.zip"}) as launcher:
        kind = ended(launcher.launch("never", shell("exit")).exit_port).kind
        assert isinstance(kind, Failed)
        assert kind.reason.startswith("exit port closed (")
        assert "/no/such/file.zip" in kind.reason


def test_a_runtime_env_of_the_wrong_type_is_refused_and_leaves_nothing(nodes: Nodes) -> None:
    with pytest.raises(TypeError, match="env_vars"):
        RayProcLauncher("refused", runtime_env={"env_vars": {"NAME": 1}})
    assert not actors_of("refused")


# -- the end of a session -----------------------------------------------------------------------------------------


def launch_each(launcher: RayProcLauncher, procs: dict[str, LaunchOptions]) -> list[ProcExitResult]:
    ports = [launcher.launch(proc_id, opts).exit_port for proc_id, opts in procs.items()]
    launcher.close(0)
    return [port.wait(0) for port in ports]


def launch_many(launcher: RayProcLauncher, procs: dict[str, LaunchOptions]) -> list[ProcExitResult]:
    launched = launcher.launch_many(procs)
    launcher.close(0)
    return [each.exit_port.wait(0) for each in launched.values()]


@pytest.mark.parametrize("launch", [launch_each, launch_many])
def test_what_was_launched_just_before_the_close_gets_an_answer_of_the_spawner(
    launcher: RayProcLauncher,
    launch: Callable[[RayProcLauncher, dict[str, LaunchOptions]], list[ProcExitResult]],
) -> None:
    assert ended(launcher.launch("first", shell("exit")).exit_port).ok  # an agent is there
    results = launch(launcher, {f"proc {n}": shell("exec sleep 9999") for n in range(300)})
    for result in results:
        assert result.stderr_tail == []  # None where the launcher had to make the result itself
        assert not result.ok
    assert not procs_of(launcher.session)


RECONNECT = """
import sys
import ray
from ray_launcher import LaunchError, LaunchOptions, RayProcLauncher

def connect():
    ray.init(sys.argv[1], log_to_driver=False, logging_level="error")
    return RayProcLauncher()

first = connect()
assert first.launch("p", LaunchOptions(program="true")).exit_port.wait(60).ok
streams = [first.logs("p"), iter(first.follow(["p"]))]
ray.shutdown()
second = connect()
for use in (lambda: first.launch("p", LaunchOptions(program="true")), lambda: first.logs("p"),
            *(lambda s=s: next(s) for s in streams)):
    try:
        use()
    except LaunchError as error:
        assert "no longer connected" in str(error), error
    else:
        raise AssertionError
first.kill("p")
first.close()
with second:
    assert second.launch("p", LaunchOptions(program="true")).exit_port.wait(60).ok
print("fine")
"""


def test_a_driver_that_reconnects_needs_a_new_launcher(nodes: Nodes) -> None:
    with contextlib.closing(Driver(RECONNECT, nodes.address)) as driver:
        assert driver.read() == "fine"
        assert driver.finish()[0] == 0


# -- secrets ------------------------------------------------------------------------------------------------------


def test_env_values_and_payloads_show_nowhere(shared: RayProcLauncher) -> None:
    secret = f"s3cr3t-{time.monotonic_ns():x}"
    given = {"env": {"API_KEY": f"{secret}-env"}, "bootstrap_payload": f"{secret}-payload"}
    opts = shell("echo up; exec sleep 9999", None, **given)
    proc = shared.launch("secret", opts)
    assert next(shared.logs("secret", follow=True)) == "up"
    fails = ended(shared.launch("fails", LaunchOptions(program="/no/such", **given)).exit_port)  # type: ignore[arg-type]
    [environ] = [Path(f"/proc/{pid}/environ").read_text() for pid in procs_of(shared.session)]
    assert secret in environ
    shown = [repr(opts), repr(proc), str(fails), repr(fails), *map(repr, shared.procs())]
    commands = [path.read_text(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path)]
    shared.kill("secret")
    ended(proc.exit_port)
    files = [path for path in Path(tempfile.gettempdir()).rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".log" for path in files)
    assert not [text for text in [*shown, *commands] if secret in text]
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def _readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True
