"""What the container spawner does beyond the contract: what runs inside, what ends it, and what is told of both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import podman
import psutil  # type: ignore[import-untyped]
import pytest
import ray

from ray_launcher import (
    ActorProcLauncher,
    Exited,
    Failed,
    LaunchOptions,
    Placement,
    ProcExitResult,
    Signaled,
    start_spawner,
)
from ray_launcher.spawners.container import ContainerSpawner

DEADLINE = 60.0
RUNS = 'echo ready >"$1"; exec sleep 9999'

pytestmark = pytest.mark.skipif(bool(podman.missing()), reason=podman.missing())

PULLED = "localhost/pulled"


@pytest.fixture(scope="module")
def spawner(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Starts spawners whose containers see the tests' directories. They end with the module: each takes seconds."""
    podman.make_image()
    base = tmp_path_factory.getbasetemp()
    started: list[Any] = []

    def start(**kwargs: Any) -> Any:
        options = {"image": podman.IMAGE, "engine_options": podman.options(), "run_options": podman.RUN_OPTIONS}
        started.append(start_spawner(ContainerSpawner, **{**options, "mounts": f"{base}:{base}", **kwargs}))
        first = ActorProcLauncher(started[-1]).launch("first", LaunchOptions(program="true"))
        first.exit_port.wait(DEADLINE)
        return started[-1]

    yield start
    for each in started:
        ray.kill(each)


@pytest.fixture(scope="module")
def launcher(spawner: Callable[..., Any]) -> ActorProcLauncher:
    return ActorProcLauncher(spawner())


@pytest.fixture
def mortal(spawner: Callable[..., Any]) -> Iterator[Any]:
    """A spawner for one test."""
    started = spawner()
    yield started
    ray.kill(started)


@pytest.fixture(scope="module")
def pulls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script: what the engine of `pulling` does to pull."""
    return tmp_path_factory.mktemp("pulls") / "script"


@pytest.fixture(scope="module")
def pulling(spawner: Callable[..., Any], pulls: Path) -> ActorProcLauncher:
    """Its image is not there, save when its script has pulled it."""
    engine = pulls.with_name("podman")
    engine.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        for word; do
            [ "$word" != pull ] || exec sh {pulls}
        done
        exec podman "$@"
        """)
    )
    engine.chmod(0o755)
    pulls.write_text("exit 1")
    return ActorProcLauncher(spawner(image=PULLED, engine=str(engine), pull_timeout="2"))


def shell(script: str, *args: object, **fields: Any) -> LaunchOptions:
    return LaunchOptions(program="sh", args=["-c", script, "sh", *map(str, args)], **fields)


def end_of(launcher: ActorProcLauncher, opts: LaunchOptions) -> ProcExitResult:
    return launcher.launch("proc", opts).exit_port.wait(DEADLINE)


def said(launcher: ActorProcLauncher, script: str, **fields: Any) -> list[str]:
    """What a script in a container prints."""
    result = end_of(launcher, shell(f"exec >&2; {script}", **fields))
    assert result.ok, result
    return result.stderr_tail or []


def why(result: ProcExitResult) -> str:
    assert isinstance(result.kind, Failed), result
    return result.kind.reason


def until(probe: Callable[[], Any], what: str) -> Any:
    give_up = time.monotonic() + DEADLINE
    while not (seen := probe()):
        assert time.monotonic() < give_up, f"not within {DEADLINE} s: {what}"
        time.sleep(0.02)
    return seen


def layers() -> dict[str, psutil.Process]:
    """What stands between the supervisor and the one container that runs, by name."""
    found = {}
    for process in psutil.process_iter():
        try:
            words, name = process.cmdline(), process.name()
        except psutil.Error:
            continue
        if name in ("podman", "conmon") and any(word.startswith(f"{podman.options().split()[1]}") for word in words):
            found["client" if name == "podman" else name] = process
    if "client" in found:
        found["shim"] = found["client"].parent()
        found["supervisor"] = found["shim"].parent()
    if "conmon" in found:
        (found["init"],) = (child for child in found["conmon"].children() if child.name() == "init")
    return found


@pytest.mark.parametrize("code", [125, 126, 127, 137])
def test_codes_that_engines_use_themselves_are_the_programs_own(launcher: ActorProcLauncher, code: int) -> None:
    assert end_of(launcher, shell(f"exit {code}")).kind == Exited(code)


def test_a_core_dump_is_told(launcher: ActorProcLauncher, tmp_path: Path) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    if pattern.startswith(("|", "/")):
        pytest.skip("this machine's core_pattern leads out of the container")
    tmp_path.chmod(0o777)
    result = end_of(launcher, shell("kill -ABRT $$", cwd=tmp_path, rlimits={"core": (1 << 30, 1 << 30)}))
    assert result.kind == Signaled(signal.SIGABRT, core_dumped=True)


def test_a_program_that_cannot_be_executed_is_failed_and_says_why(launcher: ActorProcLauncher) -> None:
    assert "/etc/passwd: Permission denied in image" in why(end_of(launcher, LaunchOptions(program="/etc/passwd")))


def test_a_working_directory_that_is_not_there_is_failed(launcher: ActorProcLauncher) -> None:
    assert "cwd '/nowhere': No such file" in why(end_of(launcher, LaunchOptions(program="true", cwd="/nowhere")))


def test_the_environment_is_the_images_with_that_of_the_launch_over_it(launcher: ActorProcLauncher) -> None:
    env = {"TEXT": "one\ntwo", "PATH": "/bin", "BYTES": os.fsdecode(b"\xff")}
    script = 'echo "$FROM_IMAGE-$TEXT-$PATH-$HYPERACTOR_PROCESS_NAME"; printf %s "$BYTES" | hexdump -e \'1/1 "%x"\''
    assert said(launcher, script, env=env, process_name="me") == ["yes-one", "two-/bin-me", "ff"]


def test_of_the_images_environment_no_more_is_left_than_wanted(launcher: ActorProcLauncher) -> None:
    assert said(launcher, 'echo "-$FROM_IMAGE-$container"', env_remove=["FROM_*"]) == ["--podman"]
    assert said(launcher, 'echo "-$FROM_IMAGE-$container-$A"', inherit_env=False, env={"A": "a"}) == ["---a"]


def test_arguments_and_environment_are_on_no_command_line_of_the_engine(
    launcher: ActorProcLauncher, tmp_path: Path
) -> None:
    launched = launcher.launch("proc", shell(RUNS, tmp_path / "mark", "argument-7", env={"KEY": "secret-7"}))
    until((tmp_path / "mark").exists, "it runs")
    lines = [" ".join(process.cmdline()) for process in layers().values()]
    inspected = podman.podman("inspect", *podman.podman("ps", "--quiet").split())
    launcher.kill("proc")
    launched.exit_port.wait(DEADLINE)
    assert not [line for line in [*lines, inspected] if "secret-7" in line or "argument-7" in line]


def test_the_working_directory_is_the_images_or_the_launchs(launcher: ActorProcLauncher, tmp_path: Path) -> None:
    assert said(launcher, "pwd") == ["/tmp"]
    assert said(launcher, "pwd; umask", cwd=tmp_path, umask=0o27) == [str(tmp_path), "0027"]


def test_what_the_placement_asks_for_is_its_limit(launcher: ActorProcLauncher, tmp_path: Path) -> None:
    place = Placement(num_cpus=0.5, memory=64 << 20)
    launched = launcher.launch("proc", shell(RUNS, tmp_path / "mark", placement=place))
    until((tmp_path / "mark").exists, "it runs")
    limits = "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}}"
    found = podman.podman("inspect", "--format", limits, *podman.podman("ps", "--quiet").split())
    launcher.kill("proc")
    launched.exit_port.wait(DEADLINE)
    assert found.split() == ["500000000", str(64 << 20)]


def test_a_program_may_answer_sigterm_as_it_likes(launcher: ActorProcLauncher, tmp_path: Path) -> None:
    script = "trap 'echo bye >&2; exit 7' TERM; echo ready >\"$1\"; while :; do sleep 0.1; done"
    launched = launcher.launch("proc", shell(script, tmp_path / "mark"))
    until((tmp_path / "mark").exists, "it runs")
    launcher.terminate("proc", 50)
    result = launched.exit_port.wait(DEADLINE)
    assert (result.kind, (result.stderr_tail or [])[-1:]) == (Exited(7), ["bye"])


def test_what_outlives_the_program_gets_sigterm_and_a_little_time(launcher: ActorProcLauncher, tmp_path: Path) -> None:
    helper = 'trap "echo bye >$1; exit" TERM; echo ready >$2; while :; do sleep 0.1; done'
    script = f"setsid sh -c '{helper}' sh $1 $2 & while [ ! -e $2 ]; do sleep 0.05; done; exit 5"
    result = end_of(launcher, shell(script, tmp_path / "bye", tmp_path / "ready"))
    assert result.kind == Exited(5)
    assert (tmp_path / "bye").read_text() == "bye\n"


@pytest.mark.parametrize(
    "layer",
    ["init", "client", "shim", pytest.param("conmon", marks=pytest.mark.slow)],  # podman waits 20 s for a lost conmon
)
def test_whatever_is_killed_the_container_goes_with_it(launcher: ActorProcLauncher, tmp_path: Path, layer: str) -> None:
    launched = launcher.launch("proc", shell(RUNS, tmp_path / "mark"))
    until((tmp_path / "mark").exists, "it runs")
    inside = layers()["init"]
    layers()[layer].kill()
    assert launched.exit_port.wait(DEADLINE).kind == Signaled(signal.SIGKILL)
    until(lambda: not inside.is_running(), "the container's first process has gone")
    until(lambda: not podman.podman("ps", "--all", "--quiet"), "the container has gone")


def test_a_container_that_the_engine_is_told_to_stop_is_terminated(launcher: ActorProcLauncher, tmp_path: Path) -> None:
    launched = launcher.launch("proc", shell(RUNS, tmp_path / "mark"))
    until((tmp_path / "mark").exists, "it runs")
    podman.podman("stop", *podman.podman("ps", "--quiet").split())
    assert launched.exit_port.wait(DEADLINE).kind == Signaled(signal.SIGTERM)


@pytest.mark.slow
def test_with_the_supervisor_the_container_is_lost_and_removed(mortal: Any, tmp_path: Path) -> None:
    launcher = ActorProcLauncher(mortal)
    launched = launcher.launch("proc", shell(RUNS, tmp_path / "mark"))
    until((tmp_path / "mark").exists, "it runs")
    layers()["supervisor"].kill()
    assert "supervisor" in why(launched.exit_port.wait(DEADLINE))
    until(lambda: not podman.podman("ps", "--all", "--quiet"), "the container has gone")
    assert end_of(launcher, shell("exit 3")).kind == Exited(3)


def test_with_the_spawner_the_container_goes_and_nothing_is_left(mortal: Any, tmp_path: Path) -> None:
    launcher = ActorProcLauncher(mortal)
    launched = launcher.launch("proc", shell(RUNS, tmp_path / "mark"))
    until((tmp_path / "mark").exists, "it runs")
    ray.kill(mortal)
    assert "exit port closed" in why(launched.exit_port.wait(DEADLINE))
    until(lambda: not podman.podman("ps", "--all", "--quiet"), "the container has gone")


@pytest.mark.slow
def test_a_spawner_removes_what_others_left_that_were_lost_with_their_janitors(start: Callable[..., Any]) -> None:
    podman.make_image()
    boot, space = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), Path("/proc/self/ns/pid").readlink()
    born = Path("/proc/self/stat").read_text().split()[21]
    for number in (born, "1"):  # of us, and of nobody
        shim = f"ray_launcher.shim={boot}/{space}/{os.getpid()}/{number}"
        run = ["run", "--detach", "--name", f"of-{number}", "--label", shim, *podman.RUN_OPTIONS.split()]
        podman.podman(*run, podman.IMAGE, "sleep", "9999")
    start(ContainerSpawner, podman.IMAGE, engine_options=podman.options())
    until(lambda: podman.podman("ps", "--all", "--format", "{{.Names}}") == f"of-{born}\n", "the lost one has gone")
    podman.podman("rm", "--force", "--time=0", f"of-{born}")


class Elsewhere(ContainerSpawner):
    """Takes the nodes for machines of another type."""

    def __init__(self, shim: str) -> None:
        super().__init__(podman.IMAGE)
        self._shim = [shim]


@pytest.mark.slow
def test_on_a_machine_of_another_type_a_launch_fails_and_says_which_are_needed(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    shim = tmp_path / "shim"
    shim.write_bytes(b"\0")
    shim.chmod(0o755)
    reason = why(end_of(ActorProcLauncher(start(Elsewhere, str(shim))), LaunchOptions(program="true")))
    assert reason.startswith(f"{shim}: wrong format")
    assert f"nodes need this package where the spawner has it, on {os.uname().machine}" in reason


@pytest.mark.slow
def test_without_its_driver_a_container_is_terminated_in_its_grace_and_nothing_is_left(
    cluster: str, spawner: Callable[..., Any], tmp_path: Path
) -> None:
    program = "trap 'sleep 1; echo bye >$1; exit' TERM; echo ready >$1; while :; do sleep 0.1; done"
    script = f"""
        import os, signal, time, ray
        from ray_launcher import ActorProcLauncher, LaunchOptions, start_spawner
        from ray_launcher.spawners.container import ContainerSpawner
        ray.init({cluster!r}, log_to_driver=False)
        opts = LaunchOptions(program="sh", args=["-c", {program!r}, "sh", {str(tmp_path / "mark")!r}])
        spawner = start_spawner(
            ContainerSpawner, {podman.IMAGE!r}, engine_options={podman.options()!r},
            run_options={podman.RUN_OPTIONS!r}, mounts="{tmp_path}:{tmp_path}",
        )
        launched = ActorProcLauncher(spawner).launch("proc", opts)
        while not os.path.exists({str(tmp_path / "mark")!r}):
            assert not launched.exit_port.done(), launched.exit_port.wait()
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=DEADLINE, check=False)
    assert done.returncode == -signal.SIGKILL
    until(lambda: (tmp_path / "mark").read_text() == "bye\n", "it has answered SIGTERM")
    until(lambda: not podman.podman("ps", "--all", "--quiet"), "the container has gone")


@pytest.mark.slow
def test_a_spawner_that_nobody_knows_any_more_goes_like_any_other(spawner: Callable[..., Any]) -> None:
    started = start_spawner(ContainerSpawner, podman.IMAGE)
    before = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    ray.get(started.serve_hush.remote("nobody"))
    del started
    until(lambda: {a["name"] for a in ray.util.list_named_actors(all_namespaces=True)} <= before, "it has gone")


def test_an_image_is_pulled_once_for_all_who_wait_for_it(
    pulling: ActorProcLauncher, pulls: Path, tmp_path: Path
) -> None:
    pulls.write_text(
        f"echo pulling >>{tmp_path}/pulls; sleep 0.5; exec podman {podman.options()} tag {podman.IMAGE} {PULLED}"
    )
    ports = [pulling.launch(str(index), shell("exit 4")).exit_port for index in range(3)]
    assert [port.wait(DEADLINE).kind for port in ports] == [Exited(4)] * 3
    podman.podman("untag", podman.IMAGE, PULLED)
    assert (tmp_path / "pulls").read_text() == "pulling\n"


def test_an_image_that_cannot_be_pulled_fails_the_launch_and_says_what_to_do(
    pulling: ActorProcLauncher, pulls: Path
) -> None:
    pulls.write_text("echo no such registry >&2; exit 7")
    reason = why(end_of(pulling, LaunchOptions(program="true")))
    assert f"image '{PULLED}' is not to be had on node" in reason
    assert "exited with code 7: no such registry; check its name, or put it there with" in reason


def test_a_pull_has_a_deadline(pulling: ActorProcLauncher, pulls: Path) -> None:
    pulls.write_text("exec sleep 9999")
    assert "pulling it took longer than pull_timeout=2 s" in why(end_of(pulling, LaunchOptions(program="true")))


def test_a_launch_can_be_killed_while_the_image_is_pulled(
    pulling: ActorProcLauncher, pulls: Path, tmp_path: Path
) -> None:
    pulls.write_text(f"touch {tmp_path}/mark; exec sleep 9999")
    launched = pulling.launch("proc", LaunchOptions(program="true"))
    until((tmp_path / "mark").exists, "it is pulling")
    pulling.kill("proc")
    assert "asked to end before it was started" in why(launched.exit_port.wait(DEADLINE))


@pytest.mark.parametrize(
    "field", [{"tty": True}, {"want_stdin": True}, {"max_restarts": 1}, {"time_limit": 5}], ids=str
)
def test_what_containers_do_not_do_is_refused(launcher: ActorProcLauncher, field: dict[str, Any]) -> None:
    (name,) = field
    assert why(end_of(launcher, LaunchOptions(program="true", **field))).startswith(f"LaunchOptions.{name} is not for")
