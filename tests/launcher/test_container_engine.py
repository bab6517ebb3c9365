"""What a node's engine is told, and what the shim makes of its answers: without a cluster."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import podman
import pytest

import ray_launcher.spawners
from ray_launcher import LaunchOptions, Placement, ProcBind
from ray_launcher.spawners import container, engine, shim
from ray_launcher.spawners.engine import Engine

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


def shimmed(tmp_path: Path, using: Engine, opts: LaunchOptions, **env: str) -> tuple[Any, str]:
    """How the shim ends, when it is run by hand, and what is on stderr."""
    secrets, out, err = tmp_path / "secrets", tmp_path / "log.out", tmp_path / "log.err"
    secrets.mkdir()
    (secrets / "spec").write_bytes(engine.spec(opts))
    environ = {**os.environ, "RAY_LAUNCHER_SECRETS": str(secrets), "RAY_LAUNCHER_ID": "tests", **env}
    command = [*container.shim_command(), *engine.packed(using.plan("session", "launch", opts))]
    with out.open("ab") as stdout, err.open("ab") as stderr:
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, timeout=60, check=False
        )
    value = tmp_path / "log.value"
    end = pickle.loads(value.read_bytes()[1:]) if value.exists() else done.returncode  # behind the mark of a value
    return end, err.read_text()


@pytest.fixture
def recorder(tmp_path: Path) -> Engine:
    path = tmp_path / "podman"
    path.write_text(RECORDER)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return dataclasses.replace(PLAIN, engine=str(path))


real = pytest.mark.skipif(bool(podman.missing()), reason=podman.missing())


@real
def test_user_network_and_further_options_are_the_engines(tmp_path: Path) -> None:
    podman.make_image()
    using = dataclasses.replace(
        PLAIN,
        engine_options=tuple(podman.options().split()),
        run_options=engine.words("run_options", "--hostname 'box' " + podman.RUN_OPTIONS.split(" ", 1)[1]),
        user="app",
        network="none",
    )
    script = "exec >&2; id -un; hostname; ls /sys/class/net; exit 9"
    opts = LaunchOptions(program="sh", args=["-c", script])
    assert shimmed(tmp_path, using, opts) == (9, "app\nbox\nlo\n")


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
    assert engine.words("mounts", value) == found


def test_a_text_with_a_lone_quote_is_refused() -> None:
    with pytest.raises(ValueError, match="run_options: No closing quotation"):
        engine.words("run_options", "--hostname 'box")


def test_the_shim_knows_where_the_container_has_its_box() -> None:
    for name in ("init.c", "shim.c"):
        assert f'#define BOX "{engine.BOX}"' in (HERE / name).read_text()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("program", ["init", "shim"])
def test_the_binaries_are_made_of_their_sources(program: str, machine: str) -> None:
    source = hashlib.sha256((HERE / f"{program}.c").read_bytes()).hexdigest()
    assert f"{program}.c {source}\0".encode() in (HERE / f"{program}-{machine}").read_bytes(), "run build.sh"
