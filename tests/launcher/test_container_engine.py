"""What a node's engine is told, and what the shim makes of its answers: without a cluster."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import podman
import psutil  # type: ignore[import-untyped]
import pytest

import ray_launcher.spawners
from ray_launcher import LaunchOptions, Placement, ProcBind, ProcLauncherError
from ray_launcher.spawners import arguments, container, engine, janitor
from ray_launcher.spawners.engine import Engine
from ray_launcher.spawners.reaper import is_lost, reap

HERE = Path(ray_launcher.spawners.__file__).parent
PLAIN = Engine(podman.IMAGE, "podman", (), (), (), None, None, "cdi", True)
#: Says how it was called, and ends like an engine that could not start anything; it knows any image.
RECORDER = """#!/bin/sh
[ "$1" = image ] && exit 0
[ "$1" = run ] || [ "$2" = run ] || exit 0
printf '%s\\n' "$@" >&2
env >&2
exit 125
"""


def plan(using: Engine = PLAIN, **fields: Any) -> list[str]:
    return using.plan("session", "launch", LaunchOptions(program="true", **fields))["run"]


def shim_of(tmp_path: Path, plan: dict[str, list[str]], opts: LaunchOptions, **env: str) -> subprocess.Popen[bytes]:
    """A shim, run by hand."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "spec").write_bytes(engine.spec(opts))
    environ = {**os.environ, "RAY_LAUNCHER_SECRETS": str(secrets), "RAY_LAUNCHER_ID": "tests", **env}
    command = [*container.shim_command(), *engine.packed(plan)]
    with (tmp_path / "log.out").open("ab") as stdout, (tmp_path / "log.err").open("ab") as stderr:
        return subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr)


def shimmed(tmp_path: Path, using: Engine, opts: LaunchOptions, **env: str) -> tuple[Any, str]:
    """How it ends, and what is on stderr."""
    with shim_of(tmp_path, using.plan("session", "launch", opts), opts, **env) as shim:
        code = shim.wait(60)
    value = tmp_path / "log.value"
    end = pickle.loads(value.read_bytes()[1:]) if value.exists() else code  # behind the mark of a value
    return end, (tmp_path / "log.err").read_text()


def until(probe: Callable[[], Any], what: str) -> Any:
    give_up = time.monotonic() + 60
    while not (seen := probe()):
        assert time.monotonic() < give_up, f"not within 60 s: {what}"
        time.sleep(0.01)
    return seen


@pytest.fixture
def recorder(tmp_path: Path) -> Engine:
    path = tmp_path / "podman"
    path.write_text(RECORDER)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return dataclasses.replace(PLAIN, engine=str(path))


#: What they do in place of a container: tell of an exit; wait for two bytes, and then tell of one.
_BOX = """#!/bin/sh
while [ "$1" != --mount ]; do shift; done
box=${2#type=bind,source=}; box=${box%,target=*}
"""
EXITING = f"{_BOX}printf 'running - 0 0\\nexited - 7 0\\n' >$box/status"
READING = f"""{_BOX}
exec <$box/life >>$box/heard
touch $box/reads
dd bs=1 count=2 2>/dev/null
printf 'running - 0 0\\nexited - 3 0\\n' >$box/status
"""

real = pytest.mark.skipif(bool(podman.missing()), reason=podman.missing())


@real
def test_user_network_and_further_options_are_the_engines(tmp_path: Path) -> None:
    podman.make_image()
    using = dataclasses.replace(
        PLAIN,
        engine_options=tuple(podman.options().split()),
        run_options=arguments.words("run_options", "--hostname 'box' " + podman.RUN_OPTIONS.split(" ", 1)[1]),
        user="app",
        network="none",
    )
    script = "exec >&2; id -un; hostname; ls /sys/class/net; exit 9"
    opts = LaunchOptions(program="sh", args=["-c", script])
    assert shimmed(tmp_path, using, opts) == (9, "app\nbox\nlo\n")


def test_a_plain_exit_needs_no_python(tmp_path: Path, recorder: Engine) -> None:
    plan = recorder.plan("session", "launch", LaunchOptions(program="true"))
    plan["otherwise"] = ["/nonexistent"]
    Path(recorder.engine).write_text(EXITING)
    with shim_of(tmp_path, plan, LaunchOptions(program="true")) as shim:
        assert shim.wait(60) == 7


def test_what_it_becomes_otherwise_is_told_why_holds_the_fifo_and_is_not_ended_by_sigterm(
    tmp_path: Path, recorder: Engine
) -> None:
    plan = recorder.plan("session", "launch", LaunchOptions(program="true"))
    plan["otherwise"] = ["/bin/sh", "-c", 'kill -TERM $$; test -p /dev/fd/$3 && echo "$1 $2 $4"; exit 9', "sh"]
    (tmp_path / "log.err").write_text("before")
    with shim_of(tmp_path, plan, LaunchOptions(program="true")) as shim:
        assert shim.wait(60) == 9
    assert (tmp_path / "log.out").read_text() == "client 125 6\n"


def test_what_a_shim_reads_and_sigterm_go_into_the_container(tmp_path: Path, recorder: Engine) -> None:
    Path(recorder.engine).write_text(READING)
    opts = LaunchOptions(program="true")
    with shim_of(tmp_path, recorder.plan("session", "launch", opts), opts) as shim:
        until((tmp_path / "secrets/box/reads").exists, "the client runs")
        shim.send_signal(signal.SIGTERM)
        until(lambda: (tmp_path / "secrets/box/heard").read_bytes() == b"\x0f", "SIGTERM has arrived")
        assert shim.stdin is not None
        shim.stdin.write(b"\x09")
        shim.stdin.flush()
        assert shim.wait(60) == 3
    assert (tmp_path / "secrets/box/heard").read_bytes() == b"\x0f\x09"


def test_without_the_engine_the_end_says_what_to_do(tmp_path: Path) -> None:
    using = dataclasses.replace(PLAIN, engine="no-such-engine")
    end, _ = shimmed(tmp_path, using, LaunchOptions(program="true"))
    why = "cannot run 'no-such-engine': No such file or directory; install it on this node, or name another engine"
    assert end == ("failed", 0, False, why)


def test_an_engine_that_starts_nothing_has_the_last_word(tmp_path: Path, recorder: Engine) -> None:
    (what, _, _, reason), said = shimmed(tmp_path, recorder, LaunchOptions(program="true"))
    assert what == "failed"
    assert reason.startswith(f"{recorder.engine} could not start the container (code 125): ")
    assert reason.endswith(said.strip()[-500:])


@real
def test_without_the_image_the_end_says_so(tmp_path: Path) -> None:
    using = dataclasses.replace(PLAIN, image="localhost/nothing", engine_options=tuple(podman.options().split()))
    end, _ = shimmed(tmp_path, using, LaunchOptions(program="true"))
    assert end == ("no-image", 0, False, "")


@pytest.mark.parametrize(
    "how, told",
    [
        ("cdi", ["--device", "nvidia.com/gpu=2", "--device", "nvidia.com/gpu=5"]),
        ("engine", ["--gpus", '"device=2,5"']),
    ],
)
def test_the_gpus_of_the_lease_are_handed_over(tmp_path: Path, recorder: Engine, how: str, told: list[str]) -> None:
    opts = LaunchOptions(program="true", placement=Placement(num_gpus=2))
    using = dataclasses.replace(recorder, gpus=how)
    _, said = shimmed(tmp_path, using, opts, CUDA_VISIBLE_DEVICES="2,5")
    assert "\n".join(told) in said


def test_without_a_request_no_gpu_is_handed_over(tmp_path: Path, recorder: Engine) -> None:
    _, said = shimmed(tmp_path, recorder, LaunchOptions(program="true"), CUDA_VISIBLE_DEVICES="2,5")
    assert "nvidia.com" not in said


def test_the_engine_has_the_nodes_environment_and_not_the_programs(tmp_path: Path, recorder: Engine) -> None:
    _, said = shimmed(tmp_path, recorder, LaunchOptions(program="true", env={"KEY": "value-7"}), HERE="node")
    assert "HERE=node" in said
    assert "value-7" not in said


def test_limits_are_options_of_the_engine() -> None:
    fields: dict[str, Any] = {
        "placement": Placement(num_cpus=2, memory=1 << 30),
        "proc_bind": ProcBind(cpus="0-3"),
        "rlimits": {"nofile": (10, 20), "core": (0, None)},
    }
    wanted = {f"--memory={1 << 30}b", "--cpus=2", "--cpuset-cpus=0-3", "--ulimit=nofile=10:20", "--ulimit=core=0:-1"}
    assert wanted <= set(plan(**fields))
    without = plan(dataclasses.replace(PLAIN, limits=False), **fields)
    assert wanted & set(without) == {"--ulimit=nofile=10:20", "--ulimit=core=0:-1"}


@pytest.mark.parametrize("value, found", [("", ()), ("a 'b c'", ("a", "b c")), (["a b", "c"], ("a b", "c"))], ids=str)
def test_words_may_be_one_text(value: Any, found: tuple[str, ...]) -> None:
    assert arguments.words("mounts", value) == found


def test_a_text_with_a_lone_quote_is_refused() -> None:
    with pytest.raises(ValueError, match="run_options: No closing quotation"):
        arguments.words("run_options", "--hostname 'box")


def test_the_shim_knows_where_the_container_has_its_box() -> None:
    for name in ("init.c", "shim.c"):
        assert f'#define BOX "{engine.BOX}"' in (HERE / name).read_text()


@real
def test_what_is_left_of_a_lost_shim_is_removed_and_what_a_living_one_sees_to_is_spared(tmp_path: Path) -> None:
    podman.make_image()
    using = dataclasses.replace(
        PLAIN, engine_options=tuple(podman.options().split()), run_options=tuple(podman.RUN_OPTIONS.split())
    )
    opts = LaunchOptions(program="sleep", args=["9999"])
    with shim_of(tmp_path, using.plan("session", "launch", opts), opts) as shim:
        status = tmp_path / "secrets/box/status"
        until(lambda: status.exists() and status.read_text(), "it runs")
        assert reap(using.listing(), using.removal(), True)
        assert podman.podman("ps", "--quiet")
        client, *_ = psutil.Process(shim.pid).children()
        client.suspend()  # else it would see to the container, as long as it lives
        shim.kill()
        client.kill()
    assert reap(using.listing(), using.removal(), True)
    assert not podman.podman("ps", "--all", "--quiet")


def test_a_shim_is_lost_only_if_that_is_for_sure() -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    space, start = Path("/proc/self/ns/pid").readlink(), Path("/proc/self/stat").read_text().split()[21]
    pid = os.getpid()
    assert not is_lost(f"{boot}/{space}/{pid}/{start}")
    assert is_lost(f"{boot}/{space}/{pid}/{int(start) - 1}")
    assert is_lost(f"{boot[::-1]}/{space}/{pid}/{start}")
    assert not is_lost(f"{boot}/pid:[1]/{pid}/{int(start) - 1}")
    assert not is_lost("")


def test_where_the_engine_cannot_be_asked_something_may_be_left(tmp_path: Path, recorder: Engine) -> None:
    Path(recorder.engine).write_text("#!/bin/sh\nexit 1\n")
    assert not reap(recorder.listing(), recorder.removal(), False)
    Path(recorder.engine).unlink()
    assert reap(recorder.listing(), recorder.removal(), False)


def test_on_other_machines_it_is_said_which_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_MACHINE", "vax")
    with pytest.raises(ProcLauncherError, match="shim-vax cannot be executed: containers need x86_64 or aarch64"):
        container.shim_command()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("program", ["init", "shim"])
def test_the_binaries_are_made_of_their_sources(program: str, machine: str) -> None:
    source = hashlib.sha256((HERE / f"{program}.c").read_bytes()).hexdigest()
    assert f"{program}.c {source}\0".encode() in (HERE / f"{program}-{machine}").read_bytes(), "run build.sh"


def test_a_janitor_that_cannot_watch_is_started_again_by_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be there for ever, and do nothing."""

    def fail() -> None:
        raise RuntimeError("no answer from Ray")

    left: list[int] = []
    watcher = object.__new__(janitor.Janitor)
    watcher._session = "session"
    monkeypatch.setattr(watcher, "_see_to_it", fail)
    monkeypatch.setattr(os, "_exit", left.append)
    watcher._watch()
    assert left == [1]
