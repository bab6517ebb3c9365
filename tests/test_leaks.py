"""The check after each test: it sees each kind of thing that may be left, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from leaks import NAMESPACE, Traces
from node_rig import Wire, until
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

from ray_launcher.node import client

SLEEP = ["/bin/sleep", "9999"]


@contextmanager
def running(command: list[str], **env: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, env=env) as process:
        try:
            environ = Path(f"/proc/{process.pid}/environ")
            until(lambda: environ.read_bytes() or not env, "the kernel shows its environment")
            yield process
        finally:
            process.kill()


@contextmanager
def a_proc() -> Iterator[None]:
    with running(SLEEP, TMPDIR=tempfile.gettempdir(), RAY_LAUNCHER_ID="session/token"):
        yield


@contextmanager
def a_zombie() -> Iterator[None]:
    with subprocess.Popen(["/bin/true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield


@contextmanager
def a_supervisor() -> Iterator[None]:
    directory = Path(tempfile.gettempdir()) / "elsewhere" / "supervisor"
    client.make_directory(directory)
    client.start(directory, 0, 60.0, 0.1)
    yield
    wire = Wire(directory)
    wire.send(b"stop", b"0")
    wire.wait_closed()
    wire.close()
    client.remove_directory(directory)


@contextmanager
def a_runtime_directory() -> Iterator[None]:
    directory = Path(tempfile.gettempdir()) / f"ray-launcher-{os.geteuid()}" / "session-node"
    client.make_directory(directory)
    directory.mkdir(0o700)
    yield
    client.remove_directory(directory)


@contextmanager
def a_spare_file() -> Iterator[None]:
    with subprocess.Popen(["/bin/true"]) as gone:
        pass
    logs = Path(tempfile.gettempdir()) / "ray" / f"session_{uuid.uuid4().hex}" / "logs"
    logs.mkdir(parents=True)
    spare = logs / f"ray-launcher-spare-{gone.pid}-1"
    spare.touch()
    yield
    spare.unlink()


class Idle:
    def ready(self) -> None:
        pass


@contextmanager
def an_actor() -> Iterator[None]:
    options = {"name": f"agent-{uuid.uuid4().hex}", "namespace": NAMESPACE, "num_cpus": 0, "lifetime": "detached"}
    actor: Any = ray.remote(Idle)
    actor = actor.options(**options).remote()
    ray.get(actor.ready.remote())
    yield
    ray.kill(actor)


@contextmanager
def a_placement_group() -> Iterator[None]:
    group = ray.util.placement_group([{"CPU": 1}])
    ray.get(group.ready())
    yield
    ray.util.remove_placement_group(group)


@contextmanager
def a_key() -> Iterator[None]:
    key = f"{uuid.uuid4().hex}/generation"
    _internal_kv_put(key, b"1", namespace=NAMESPACE)
    yield
    _internal_kv_del(key, namespace=NAMESPACE)


NOTICED = {
    "proc": a_proc,
    "zombie": a_zombie,
    "supervisor or guard": a_supervisor,
    "runtime directory": a_runtime_directory,
    "spare log file": a_spare_file,
    "actor agent-": an_actor,
    "placement group": a_placement_group,
    "key": a_key,
}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("words, leave", NOTICED.items(), ids=NOTICED)
def test_what_is_left_is_named_and_no_longer_once_it_is_gone(
    words: str, leave: Callable[[], AbstractContextManager[None]]
) -> None:
    before = Traces()
    with leave():
        left = before.wait_for_none_new(deadline=0.2)
        assert left
        assert all(line.startswith(words) for line in left)
    assert before.wait_for_none_new() == []


@pytest.mark.parametrize("leave", [a_proc, a_zombie, a_runtime_directory, a_spare_file])
def test_what_was_there_before_is_no_leak(leave: Callable[[], AbstractContextManager[None]]) -> None:
    with leave():
        assert Traces().wait_for_none_new(deadline=0) == []


def test_a_proc_without_the_inherited_environment_is_known_by_its_supervisor() -> None:
    root = Path(tempfile.gettempdir())
    before = Traces()
    script = "import subprocess, sys; subprocess.run(['sleep', '9999'], env={'RAY_LAUNCHER_ID': 's/t'})"
    main = root / "ray_launcher" / "node" / "main.py"
    main.parent.mkdir(parents=True)
    main.write_text(script)
    with running([sys.executable, str(main), str(root / "supervisor")], PATH=os.environ["PATH"]) as supervisor:
        while not (children := Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()):
            time.sleep(0.01)
        while not Path(f"/proc/{children[0]}/cmdline").read_bytes().startswith(b"sleep"):
            time.sleep(0.01)
        assert before.new() == [
            f"supervisor or guard {supervisor.pid}: {sys.executable} {main} {root / 'supervisor'}",
            f"proc {children[0]}: sleep 9999",
        ]
        os.kill(int(children[0]), signal.SIGKILL)


def test_procs_and_supervisors_of_other_test_runs_are_no_leaks() -> None:
    before = Traces()
    main = ["-c", "import time; time.sleep(9999)", "/x/ray_launcher/node/main.py", "/tmp/rlt-other/supervisor"]
    with (
        running(SLEEP, TMPDIR="/tmp/rlt-other", RAY_LAUNCHER_ID="session/token"),
        running([sys.executable, *main], PATH=os.environ["PATH"]),
    ):
        assert before.wait_for_none_new(deadline=0) == []


def test_things_that_are_just_going_are_waited_for() -> None:
    before = Traces()
    with running(["/bin/sleep", "0.3"], TMPDIR=tempfile.gettempdir(), RAY_LAUNCHER_ID="session/token") as process:
        assert before.new() == [f"proc {process.pid}: /bin/sleep 0.3"]
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert before.wait_for_none_new() == []


def test_a_test_that_leaves_a_zombie_fails(tmp_path: Path) -> None:
    leaky = tmp_path / "test_leaky.py"
    leaky.write_text(
        "import os, subprocess\nKEPT = []\n\ndef test_leaky():\n    KEPT.append(subprocess.Popen('/bin/true'))\n"
        "    os.waitid(os.P_PID, KEPT[0].pid, os.WEXITED | os.WNOWAIT)\n"
    )
    script = f"""
import sys, pytest, leaks
leaks.DEADLINE = 0.5
with leaks.isolate():
    sys.exit(pytest.main(["-p", "leaks", "-p", "no:cacheprovider", {str(leaky)!r}]))
"""
    support = Path(__file__).with_name("support")
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(support)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "a child of the tests' process" in done.stdout
    assert "1 error in" in done.stdout
