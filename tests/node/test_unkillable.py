"""What SIGKILL does not end is reported within a bound, not waited for, and does not keep the supervisor."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from node_rig import Rig, Wire, exists, stat, until
from other_user import NOBODY, answer_of, needs_root, process_of

from ray_launcher.node.guard import Fence
from ray_launcher.node.limits import Limits
from ray_launcher.node.spec import Spec
from ray_launcher.node.supervisor import Graces, Supervisor

_FREEZER = Path("/sys/fs/cgroup/freezer")


class Freezer:
    """A control group of the old freezer: what is frozen in it is in state D, and SIGKILL waits for the thaw."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def freeze(self, *pids: int) -> None:
        for pid in pids:
            (self._path / "tasks").write_text(str(pid))
        (self._path / "freezer.state").write_text("FROZEN")
        until(lambda: all(stat(pid)[0] == "D" for pid in pids), "they are in state D")

    def thaw(self) -> None:
        (self._path / "freezer.state").write_text("THAWED")


@pytest.fixture
def freezer() -> Iterator[Freezer]:
    path = _FREEZER / f"node-test-{uuid.uuid4().hex}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"needs root and the freezer of cgroup v1: {error}")
    freezer = Freezer(path)
    yield freezer
    freezer.thaw()

    def removed() -> bool:
        with contextlib.suppress(OSError):
            path.rmdir()
        return not path.exists()

    until(removed, "nothing is left in the freezer")


def test_a_leader_in_state_d_is_reported_within_the_bound(make_rig: Callable[..., Rig], freezer: Freezer) -> None:
    rig = make_rig(kill_bound=0.3)
    token = rig.sh("echo $$; exec sleep 9999")
    (pid,) = rig.pids(token)
    freezer.freeze(pid)
    rig.wire.send(b"kill", token)
    end = rig.exit(token)
    assert (end.kind, end.value, end.tail) == ("failed", None, [])
    assert "still alive 0.3 s after SIGKILL" in end.reason
    assert str(pid) in end.reason
    assert rig.exit(rig.sh("exit 7")).value == 7


def test_a_leader_in_state_d_at_its_time_limit_is_reported_with_that(
    make_rig: Callable[..., Rig], freezer: Freezer
) -> None:
    rig = make_rig(kill_bound=0.3)
    token = rig.sh("echo $$; exec sleep 9999", limits=Limits(time=1.25, grace=0.1))
    freezer.freeze(*rig.pids(token))
    end = rig.exit(token)
    assert (end.kind, end.tail) == ("failed", ["[ray_launcher] time limit of 1.25 s reached: SIGTERM sent"])


def test_its_later_end_is_not_reported_again(make_rig: Callable[..., Rig], freezer: Freezer) -> None:
    rig = make_rig(kill_bound=0.3)
    token = rig.sh("setsid sleep 9999 & echo $$; exec sleep 9999")
    (pid,) = rig.pids(token)
    freezer.freeze(pid)
    rig.wire.send(b"terminate", token, b"0")
    assert rig.exit(token).kind == "failed"
    freezer.thaw()
    rig.gone(pid)
    rig.none_left()
    assert rig.exit(rig.sh("exit 7")).value == 7
    assert not [frame for frame in rig.wire.frames if frame[0] == b"exit" and frame[2] == token]


def test_a_leftover_in_state_d_is_noted_and_the_result_stands(make_rig: Callable[..., Rig], freezer: Freezer) -> None:
    rig = make_rig(kill_bound=0.3, leftover_grace=0.1)
    token = rig.sh("sh -c 'echo $$; exec sleep 9999' $0 & echo $$ >&2; wait; exit 5")
    (pid,) = rig.pids(token)
    freezer.freeze(pid)
    leader = int(rig.log(token, "err").read_text())
    rig.wire.send(b"signal", token, b"%d" % signal.SIGTERM)
    assert rig.exit(token).value == signal.SIGTERM
    (note,) = rig.wire.verb(b"note")
    assert f"leader {leader}" in note.decode()
    assert str(pid) in note.decode()
    assert exists(pid)


def test_the_supervisor_ends_although_something_cannot_be_killed(
    make_rig: Callable[..., Rig], freezer: Freezer
) -> None:
    rig = make_rig(kill_bound=0.3)
    token = rig.sh("echo $$; exec sleep 9999")
    (pid,) = rig.pids(token)
    freezer.freeze(pid)
    rig.wire.send(b"stop", b"0.1")
    assert rig.exit(token).kind == "failed"
    rig.wire.verb(b"bye")
    rig.wait_end()
    assert exists(pid)


@pytest.fixture
def become_root() -> Iterator[Path]:
    """A set-uid setpriv, in a directory of everybody's: the other user can enter none of this test's."""
    needs_root()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv of util-linux")
    program = Path("/tmp") / f"node-test-{uuid.uuid4().hex}"
    shutil.copy(setpriv, program)
    program.chmod(0o4755)
    yield program
    program.unlink()


def test_a_leader_that_became_another_user_is_reported_and_no_more(become_root: Path) -> None:
    """A supervisor without privileges may not signal it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    address = f"\0node-test-{uuid.uuid4().hex}"
    listener.bind(address)
    listener.listen()
    listener.setblocking(False)

    def ask() -> str:
        wire = Wire(address)
        argv = [b"setpriv", b"--reuid", b"0", b"sleep", b"9999"]
        wire.send(b"launch", *Spec(token=b"root", program=bytes(become_root), argv=argv).fields())
        pid = wire.verb(b"started")[1].decode()
        until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "it has become root")
        wire.send(b"terminate", b"root", b"0")
        end = wire.exit(b"root")
        wire.barrier()
        return f"{pid} {end.kind} {end.reason}"

    def supervise() -> None:
        Supervisor(listener, 0, Graces(60.0, 0.0, 0.0, 0.3), Fence()).run()

    with listener, process_of(NOBODY, supervise):
        pid, kind, reason = answer_of(NOBODY, ask).split(" ", 2)
        os.kill(int(pid), signal.SIGKILL)
    assert (kind, pid in reason, "another user's" in reason) == ("failed", True, True)
