"""A node short of something, seen from the driver: launches fail in words, what runs is unharmed, and it passes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from limits import cgroup, without_descriptors, without_memory
from node_rig import Gate, running, stat, until
from ray.runtime_context import RuntimeContext
from ray_rig import DEADLINE, Nodes, actors_of, agents_of, ended, python, rest_of, shell
from small_disk import PRESSURES, Pressure, SmallDisk, small_disk

import ray_launcher.session
from ray_launcher import Failed, LaunchOptions, Placement, ProcExitResult, RayProcLauncher
from ray_launcher.cluster.wire import SessionInfo

#: Seconds for the start of an agent, shorter than in earnest.
START = 5.0
#: Its output leaves no empty file behind, which would be set aside, and serve a launch when there are no inodes.
LOUD = "echo out; echo err >&2"
_count = itertools.count()


class Kept:
    """A proc that waits for its end. pid: its leader's."""

    def __init__(self, gate: Gate, pid: int) -> None:
        self._gate, self.pid = gate, pid
        self.ended = False

    def end(self) -> None:
        self.ended = True
        self._gate.open()
        until(lambda: not running(self.pid), "the proc has ended")


class Node:
    """One with a small disk for its logs and its temporary files, and a session that has been there."""

    def __init__(self, launcher: RayProcLauncher, node_id: str, disk: SmallDisk) -> None:
        self.launcher, self.disk, self.on = launcher, disk, Placement(node_id=node_id)
        assert self.serves()
        [self.agent] = [actor for actor in agents_of(launcher.session) if self._facts(actor)["node"] == node_id[:16]]

    def run(self, opts: LaunchOptions) -> tuple[str, Any]:
        name = f"proc {next(_count)}"
        return name, self.launcher.launch(name, opts).exit_port

    def serves(self) -> bool:
        _, port = self.run(shell(f"{LOUD}; exit 3", self.on))
        return ended(port).returncode == 3

    def refuses(self, *words: str) -> None:
        """The next launch fails, and says these words."""
        kind = ended(self.run(shell(f"{LOUD}; exit 3", self.on))[1]).kind
        assert isinstance(kind, Failed), kind
        assert all(word in kind.reason for word in words), kind
        assert "Traceback" not in kind.reason

    @contextlib.contextmanager
    def keeps(self) -> Iterator[Kept]:
        """A proc that is there before goes on, and its exit arrives, with its last words."""
        gate = Gate(Path(tempfile.gettempdir()) / "gate")
        script = f"echo $$; echo first >&2; read -r _ <'{gate.path}'; echo last >&2; exit 5"
        name, port = self.run(shell(script, self.on))
        try:
            kept = Kept(gate, int(next(self.launcher.logs(name, follow=True))))
            yield kept
            if not kept.ended:
                assert not port.done()
                kept.end()
            result = ended(port)
            assert (result.returncode, result.stderr_tail) == (5, ["first", "last"])
        finally:
            self.launcher.kill(name)
            gate.path.unlink()

    @staticmethod
    def _facts(agent: Any) -> dict[str, Any]:
        facts: dict[str, Any] = ray.get(agent.info.remote())
        return {**facts, "node": Path(facts["directory"]).name.split("-")[1]}

    def agent_pid(self) -> int:
        return int(self._facts(self.agent)["pid"])

    def directory(self) -> Path:
        return Path(self._facts(self.agent)["directory"])

    def supervisor_pid(self) -> int:
        """It is the child of the other one, its guard."""
        directory = os.fsencode(self.directory())
        pids = {int(path.parent.name): path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
        both = {pid for pid, line in pids.items() if b"node/main.py" in line and directory in line and running(pid)}
        [supervisor] = [pid for pid in both if int(stat(pid)[1]) in both]
        return supervisor


@pytest.fixture(scope="module")
def pressed(nodes: Nodes) -> Iterator[tuple[str, SmallDisk]]:
    """The id of a node, and its disk."""
    path = Path(tempfile.gettempdir()) / "p"
    environ = {"TMPDIR": str(path), "RAY_worker_register_timeout_seconds": f"{START:g}"}
    with (
        small_disk(path) as disk,
        nodes.one_more({"zone": "pressed"}, temp_dir=str(path), env_vars=environ) as node_id,
    ):
        yield node_id, disk


@pytest.fixture(scope="module")
def session(pressed: tuple[str, SmallDisk]) -> Iterator[RayProcLauncher]:
    with RayProcLauncher(grace=1) as launcher:
        Node(launcher, *pressed)  # its agent is there before the first test
        yield launcher
        launcher.close(0)


@pytest.fixture
def node(session: RayProcLauncher, pressed: tuple[str, SmallDisk]) -> Iterator[Node]:
    """After the test it serves as before."""
    node = Node(session, *pressed)
    agent, supervisor = node.agent_pid(), node.supervisor_pid()
    yield node
    assert node.serves()
    assert (agent, supervisor) == (node.agent_pid(), node.supervisor_pid())


# -- disks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pressure, code, remedy", PRESSURES)
def test_a_disk_that_takes_no_logs(node: Node, pressure: Pressure, code: int, remedy: str) -> None:
    with node.keeps(), pressure(node.disk):
        for _ in range(3):
            node.refuses("log file", os.strerror(code), remedy)
        name, port = node.run(shell("exit 3", node.on, want_stdio=False))
        assert ended(port).returncode == 3
        assert list(node.launcher.logs(name)) == []


_WRITER = """
import os, time
os.write(1, b"first\\n")
try:
    while True:
        os.write(1, b"x" * 999 + b"\\n")
        time.sleep(0.01)
except OSError as error:
    os._exit(error.errno)
"""


def test_what_a_proc_cannot_write_to_a_full_disk_is_its_own_affair(node: Node) -> None:
    name, port = node.run(python(_WRITER, node.on))
    assert next(node.launcher.logs(name, follow=True)) == "first"
    with node.disk.full():
        assert ended(port).returncode == errno.ENOSPC
        _, *lines, last = node.launcher.logs(name)
        assert set(lines) == {"x" * 999}
        assert set(last) == {"x"}  # the disk may have filled up within it


def test_an_agent_killed_while_the_disk_is_full_comes_back_when_there_is_room(
    session: RayProcLauncher, pressed: tuple[str, SmallDisk]
) -> None:
    """As Ray's memory monitor kills it. Ray cannot start a worker that cannot write its log, and goes on trying."""
    node = Node(session, *pressed)
    supervisor, agent = node.supervisor_pid(), node.agent_pid()
    with node.keeps() as kept:
        with node.disk.full():
            os.kill(agent, signal.SIGKILL)
            until(lambda: not running(agent), "the agent is gone")
            kept.end()
        assert node.serves()
    assert node.agent_pid() != agent
    assert node.supervisor_pid() == supervisor


def test_a_supervisor_that_finds_no_inode_for_itself(pressed: tuple[str, SmallDisk]) -> None:
    with RayProcLauncher(grace=1) as launcher:
        node = Node(launcher, *pressed)
        directory = node.directory()
        os.kill(node.supervisor_pid(), signal.SIGKILL)
        until(lambda: not directory.exists(), "the guard has tidied up")
        with node.disk.without_inodes():
            for _ in range(3):
                node.refuses(
                    "no supervisor on the node: the supervisor did not start: [Errno 28]",
                    f"on the disk of the directory {node.disk.path}",
                )
        assert node.serves()


# -- the start of actors ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Refusal:
    """What came of a session that Ray could start no agent for, and of one that it could start no spawner for.

    agents: of the first, at that time.
    """

    agent: ProcExitResult
    agents: list[str]
    spawner: ProcExitResult


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SmallDisk.full, id="full"),
        pytest.param(SmallDisk.without_inodes, id="no inodes", marks=[pytest.mark.slow]),
    ],
)
def refusal(
    request: pytest.FixtureRequest, pressed: tuple[str, SmallDisk], session: RayProcLauncher
) -> Iterator[Refusal]:
    """A worker of Ray's writes to a log from its start, before anything of ours runs in it. Both wait at once.

    session: has been on the node, so that the log of Ray's runtime environments is there.
    """
    node_id, disk = pressed
    opts = shell("exit 3", Placement(node_id=node_id))
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as sessions:
        patch.setattr(ray_launcher.session, "SessionInfo", partial(SessionInfo, start=START))
        launcher = sessions.enter_context(RayProcLauncher(grace=1))
        ray.get(launcher._spawner.facts.remote(), timeout=DEADLINE)
        with request.param(disk):
            with pytest.MonkeyPatch.context() as there:  # spawners are started where their driver is
                there.setattr(RuntimeContext, "get_node_id", lambda _: node_id)
                spawnerless = sessions.enter_context(RayProcLauncher(grace=1))
            ports = [each.launch("refused", opts).exit_port for each in (launcher, spawnerless)]
            agent, spawner = map(ended, ports)
            agents = agents_of(launcher.session)
        spawnerless.close(0)
        until(lambda: not actors_of(spawnerless.session), "Ray tries no more", DEADLINE)
        starts = (ended(launcher.launch("started", opts).exit_port) for _ in itertools.count())
        until(lambda: next(starts).returncode == 3, "it starts again", DEADLINE)
        yield Refusal(agent, agents, spawner)
        launcher.close(0)
        until(lambda: not rest_of(launcher.session), "nothing is left", DEADLINE)


def test_an_agent_that_ray_cannot_start_fails_its_launches_until_it_can(
    refusal: Refusal, pressed: tuple[str, SmallDisk]
) -> None:
    kind = refusal.agent.kind
    assert isinstance(kind, Failed), kind
    assert kind.reason.startswith(f"the agent of node {pressed[0]} "), kind
    assert f"did not start within {START:g} s" in kind.reason, kind
    assert not refusal.agents


def test_a_session_whose_spawner_ray_cannot_start_closes_its_ports(refusal: Refusal) -> None:
    kind = refusal.spawner.kind
    assert isinstance(kind, Failed)
    assert kind.reason.startswith(f"exit port closed (the spawner did not start within {START:g} s"), kind


# -- descriptors, processes, memory -----------------------------------------------------------------------------------


def test_a_supervisor_without_descriptors(node: Node) -> None:
    with node.keeps(), without_descriptors(node.supervisor_pid()):
        node.refuses("log file", os.strerror(errno.EMFILE), "ulimit -n")


def test_a_supervisor_without_memory(node: Node) -> None:
    with node.keeps(), without_memory(node.supervisor_pid()):
        node.refuses("cannot fork for 'sh'", "out of memory")


def test_a_supervisor_without_processes(node: Node) -> None:
    with cgroup("pids") as group:
        group.add(node.supervisor_pid())
        with node.keeps():
            group.limit_tasks(group.tasks())
            node.refuses("cannot fork for 'sh'", "the node's limit of processes is reached")
        group.limit_tasks(None)


def test_an_agent_without_descriptors_serves_on_and_its_logs_wait(node: Node) -> None:
    name, port = node.run(shell(LOUD, node.on))
    assert ended(port).ok
    with node.keeps(), futures.ThreadPoolExecutor() as pool:
        with without_descriptors(node.agent_pid()):
            assert node.serves()
            lines = pool.submit(list, node.launcher.logs(name))
            assert not futures.wait([lines], 1).done  # it would have read nothing, and taken that for all
        assert lines.result(DEADLINE) == ["out"]


def test_an_agent_without_processes_says_so_when_it_needs_a_supervisor(pressed: tuple[str, SmallDisk]) -> None:
    with RayProcLauncher(grace=1) as launcher:
        node = Node(launcher, *pressed)
        os.kill(node.agent_pid(), signal.SIGKILL)
        assert node.serves()  # through an agent that has found its supervisor, and so has started nothing yet
        name, port = node.run(shell("echo up; exec sleep 9999", node.on))
        assert next(launcher.logs(name, follow=True)) == "up"
        supervisor = node.supervisor_pid()
        with cgroup("pids") as group:
            group.add(node.agent_pid())
            group.limit_tasks(group.tasks())
            os.kill(supervisor, signal.SIGKILL)
            kind = ended(port).kind
            assert isinstance(kind, Failed)
            assert "the node's supervisor was lost" in kind.reason
            node.refuses("no supervisor on the node: cannot start", "the node's limit of processes is reached")
            group.limit_tasks(None)
        assert node.serves()
