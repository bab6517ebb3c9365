"""Who may talk to a supervisor, and what garbage does: nothing to the procs."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
from pathlib import Path

import pytest
from node_rig import Rig, running
from node_rig import stat as process_stat
from other_user import NOBODY, answer_of, needs_root

from ray_launcher.node import client
from ray_launcher.node.protocol import MAX_FRAME, pack
from ray_launcher.node.spec import Spec


@pytest.fixture
def pid(rig: Rig) -> int:
    """A proc that runs meanwhile."""
    return rig.pids(rig.sh("echo $$; exec sleep 9999"))[0]


def _unharmed(rig: Rig, pid: int) -> None:
    assert running(pid)
    if rig.wire.closed:
        rig.connect()
    assert rig.exit(rig.sh("exit 7")).value == 7


_GARBAGE = {
    "nothing": b"",
    "zeroes": bytes(1000),
    "too long a frame": b"\xff\xff\xff\xff" + b"x" * 1000,
    "a frame that never ends": (MAX_FRAME).to_bytes(4, "big") + b"x" * 100_000,
    "an empty frame": b"\0\0\0\0",
    "a field too long": b"\0\0\0\x08\0\0\0\xffabcd",
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}

_BAD_COMMANDS = {
    "an unknown verb": (b"frobnicate", b"x"),
    "an empty verb": (b"",),
    "terminate without a time": (b"terminate", b"x"),
    "terminate with a negative time": (b"terminate", b"x", b"-1"),
    "terminate with no number": (b"terminate", b"x", b"nan"),
    "terminate with words": (b"terminate", b"x", b"soon"),
    "a signal beyond all": (b"signal", b"x", b"65"),
    "a signal below all": (b"signal", b"x", b"0"),
    "a signal without a number": (b"signal", b"x", b""),
    "an ack of nothing": (b"ack",),
    "an ack of words": (b"ack", b"all"),
    "an ack of a number beyond reason": (b"ack", b"9" * 5000),
    "a base without values": (b"base", b"A"),
    "a launch of nothing": (b"launch",),
    "a launch that does not add up": (b"launch", b"t", b"/bin/true", b"", b"", b"", b"9 9 9 1 1"),
    "a launch without a token": (b"launch", *Spec(token=b"", program=b"/bin/true", argv=[b"t"]).fields()),
    "a launch with an endless token": (b"launch", *Spec(token=b"t" * 9999, program=b"/bin/true", argv=[b"t"]).fields()),
    "a stop without a time": (b"stop", b""),
}


@pytest.mark.parametrize("garbage", _GARBAGE.values(), ids=_GARBAGE.keys())
def test_garbage_from_a_stranger_ends_no_more_than_its_connection(rig: Rig, pid: int, garbage: bytes) -> None:
    stranger = rig.dial(hello=False)
    stranger.sock.sendall(garbage)
    stranger.sock.shutdown(socket.SHUT_WR)
    stranger.wait_closed()
    _unharmed(rig, pid)


@pytest.mark.parametrize("command", _BAD_COMMANDS.values(), ids=_BAD_COMMANDS.keys())
def test_a_bad_command_ends_no_more_than_the_connection(rig: Rig, pid: int, command: tuple[bytes, ...]) -> None:
    rig.wire.send(*command)
    rig.wire.wait_closed()
    _unharmed(rig, pid)


@pytest.mark.parametrize("command", [(b"kill", b"x"), (b"stop", b"0"), (b"base",)])
def test_a_command_before_hello_is_refused(rig: Rig, pid: int, command: tuple[bytes, ...]) -> None:
    stranger = rig.dial(hello=False)
    stranger.send(*command)
    stranger.wait_closed()
    _unharmed(rig, pid)


def test_random_garbage_from_many_connections_does_nothing_to_procs(rig: Rig, pid: int) -> None:
    chance = random.Random(20)  # noqa: S311  # noise, no secret
    verbs = [b"launch", b"kill", b"terminate", b"signal", b"ack", b"base", b"hello", b"x"]
    for _ in range(200):
        stranger = rig.dial(hello=chance.random() < 0.3)
        noise = chance.randbytes(chance.randrange(200))
        fields = [chance.randbytes(chance.randrange(9)) for _ in range(chance.randrange(12))]
        frame = pack(chance.choice(verbs), *fields)
        with contextlib.suppress(ConnectionError):
            stranger.sock.sendall(chance.choice([noise, frame, frame + noise, frame[:-1], frame * 20]))
        stranger.close()
    rig.wire.closed = True  # it is, if any of them said hello
    _unharmed(rig, pid)


def test_a_launch_with_an_endless_program_fails_and_no_more(rig: Rig, pid: int) -> None:
    spec = Spec(token=b"endless", program=b"/" + b"\xff" * (20 << 20), argv=[b"x"])
    rig.wire.send(b"launch", *spec.fields())
    end = rig.exit(b"endless")
    assert end.kind == "failed"
    assert len(end.reason) < 1 << 16
    _unharmed(rig, pid)


def test_strangers_that_stay_are_pushed_out_and_never_the_agent(rig: Rig, pid: int) -> None:
    strangers = [rig.dial(hello=False) for _ in range(100)]
    strangers[0].wait_closed()
    assert rig.exit(rig.sh("exit 7")).value == 7
    assert not rig.wire.closed
    assert len(list(Path(f"/proc/{rig.pid}/fd").iterdir())) < 60
    assert running(pid)


def test_without_a_descriptor_for_a_connection_the_supervisor_neither_spins_nor_forgets(rig: Rig, pid: int) -> None:
    rig.wire.barrier()
    with rig.without_descriptors():
        waiting = rig.dial()
        ticks = _cpu_ticks(rig.pid)
        assert not waiting.poll(0.5)
        assert _cpu_ticks(rig.pid) - ticks < 10  # of the 50 that half a second has
    assert waiting.verb(b"hello")
    rig.wire.closed = True  # the one that waited has taken over
    _unharmed(rig, pid)


def _cpu_ticks(pid: int) -> int:
    return sum(map(int, process_stat(pid)[11:13]))


# -- owners ----------------------------------------------------------------------------------------------------------


def test_socket_directory_and_log_are_the_owners_alone(rig: Rig) -> None:
    modes = {
        path: stat.S_IMODE(path.lstat().st_mode)
        for path in (rig.directory.parent, rig.directory, rig.directory / "socket", rig.directory / "supervisor.log")
    }
    assert set(modes.values()) == {0o700, 0o600}, modes


def test_a_client_of_another_user_is_turned_away(rig: Rig, pid: int) -> None:
    needs_root()
    for path in (rig.directory, rig.directory / "socket"):
        path.chmod(0o777)  # only the credentials are in its way
    fd = os.open(rig.directory, os.O_RDONLY | os.O_DIRECTORY)

    def ask() -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(f"/proc/self/fd/{fd}/socket")
            try:
                sock.sendall(pack(b"hello"))
                return repr(sock.recv(100))
            except ConnectionError as error:
                return type(error).__name__

    try:
        assert answer_of(NOBODY, ask) in {"b''", "BrokenPipeError", "ConnectionResetError"}
    finally:
        os.close(fd)
    _unharmed(rig, pid)


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(client.SupervisorError, match="nobody else can enter"):
        client.make_directory(tmp_path / "open")
    (tmp_path / "open" / "below").mkdir(mode=0o700)
    with pytest.raises(client.SupervisorError, match="nobody else can enter"):
        client.make_directory(tmp_path / "open" / "below")


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    needs_root()
    tmp_path.chmod(0o700)
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    with pytest.raises(client.SupervisorError, match="must be a directory of user"):
        client.make_directory(tmp_path / "theirs")


@pytest.mark.parametrize("target", ["real", "missing"])
def test_a_link_to_a_directory_is_refused(tmp_path: Path, target: str) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(client.SupervisorError, match=str(tmp_path / "link")):
        client.make_directory(tmp_path / "link")


def test_a_file_in_the_place_of_the_directory_is_an_error_that_names_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "file").touch()
    with pytest.raises(client.SupervisorError, match=str(tmp_path / "file")):
        client.make_directory(tmp_path / "file")


def test_a_very_long_directory_name_is_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 200)
    path.mkdir()
    rig = Rig(path)
    rig.start()
    rig.connect()
    assert rig.exit(rig.sh("exit 7")).value == 7
    rig.stop()
