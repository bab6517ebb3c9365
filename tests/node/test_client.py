"""The agent's side: starting a supervisor, finding one, talking to it in an asyncio loop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from node_rig import Rig, running

from ray_launcher.node import client
from ray_launcher.node.client import Client
from ray_launcher.node.protocol import MAX_FRAME, ProtocolError
from ray_launcher.node.spec import Spec


class Seen:
    """What a client's two callbacks were called with."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[tuple[bytes, list[bytes]]] = asyncio.Queue()
        self.lost = asyncio.Event()
        self.times_lost = 0

    def on_frame(self, verb: bytes, fields: list[bytes]) -> None:
        self.frames.put_nowait((verb, fields))

    def on_lost(self) -> None:
        self.times_lost += 1
        self.lost.set()

    async def verb(self, wanted: bytes) -> list[bytes]:
        while True:
            verb, fields = await asyncio.wait_for(self.frames.get(), 20)
            if verb == wanted:
                return fields


def _true(token: bytes, program: bytes = b"/bin/true") -> tuple[bytes, ...]:
    return b"launch", *Spec(token=token, program=program, argv=[program]).fields()


def test_a_client_launches_and_hears_of_the_end(rig: Rig) -> None:
    async def talk() -> None:
        seen = Seen()
        supervisor = await Client.connect(rig.directory, seen.on_frame, seen.on_lost)
        assert int((await seen.verb(b"hello"))[0]) == rig.pid
        for n in range(200):
            supervisor.send(*_true(b"%d" % n))
        ends = [await seen.verb(b"exit") for _ in range(200)]
        assert {fields[1] for fields in ends} == {b"%d" % n for n in range(200)}
        supervisor.close()
        await asyncio.wait_for(seen.lost.wait(), 20)
        assert seen.times_lost == 1

    asyncio.run(talk())


def test_what_was_sent_before_close_arrives(rig: Rig) -> None:
    async def talk() -> None:
        seen = Seen()
        supervisor = await Client.connect(rig.directory, seen.on_frame, seen.on_lost)
        supervisor.send(*_true(b"last"))
        supervisor.close()
        supervisor.send(b"garbage that is not sent any more")
        await asyncio.wait_for(seen.lost.wait(), 20)

    asyncio.run(talk())
    rig.connect()
    assert rig.exit(b"last").value == 0


def test_a_client_is_told_once_that_its_supervisor_is_lost(rig: Rig) -> None:
    async def talk() -> None:
        seen = Seen()
        supervisor = await Client.connect(rig.directory, seen.on_frame, seen.on_lost)
        await seen.verb(b"hello")
        os.kill(rig.pid, signal.SIGKILL)
        await asyncio.wait_for(seen.lost.wait(), 20)
        supervisor.send(b"stop", b"0")
        supervisor.close()
        await asyncio.sleep(0)
        assert seen.times_lost == 1

    asyncio.run(talk())


def test_a_frame_that_is_too_long_raises_where_it_is_sent(rig: Rig) -> None:
    async def talk() -> None:
        seen = Seen()
        supervisor = await Client.connect(rig.directory, seen.on_frame, seen.on_lost)
        with pytest.raises(ProtocolError):
            supervisor.send(b"launch", b"x" * MAX_FRAME)
        supervisor.send(*_true(b"next"))
        assert (await seen.verb(b"exit"))[1] == b"next"
        supervisor.close()
        await asyncio.wait_for(seen.lost.wait(), 20)

    asyncio.run(talk())


def test_where_there_is_no_supervisor_connecting_raises(tmp_path: Path) -> None:
    async def talk() -> None:
        seen = Seen()
        with pytest.raises(OSError, match="No such file"):
            await Client.connect(tmp_path, seen.on_frame, seen.on_lost)

    before = len(list(Path("/proc/self/fd").iterdir()))
    asyncio.run(talk())
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# -- starting --------------------------------------------------------------------------------------------------------


def test_start_returns_when_the_socket_listens_and_leaves_no_child(rig: Rig) -> None:
    """Nothing that kills a Ray worker's children, its session or its group can find it."""
    own = os.getpid()
    for pid in (rig.pid, rig.guard):
        assert os.getsid(pid) != os.getsid(own)
        assert os.getpgid(pid) != os.getpgid(own)
    children = Path(f"/proc/self/task/{own}/children").read_text().split()
    assert not {str(rig.pid), str(rig.guard)} & set(children)


def test_a_supervisor_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    client.make_directory(tmp_path / "run")
    with pytest.raises(client.SupervisorError, match="ValueError: could not convert string to float: 'soon'"):
        client.start(tmp_path / "run", 0, "soon", 1.0)  # type: ignore[arg-type]  # that is the point
    assert not (tmp_path / "run").exists()
    client.make_directory(tmp_path / "run")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(client.SupervisorError, match="missing"):
        client.start(tmp_path / "run", 0, 1.0, 1.0)


def test_a_start_below_a_directory_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(client.SupervisorError, match="missing"):
        client.start(tmp_path / "missing" / "ours" / "run", 0, 1.0, 1.0)


def test_the_directory_goes_with_the_supervisor_and_its_parent_with_the_last(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Rig(tmp_path / "other")
    other.directory = rig.directory.with_name("other")
    client.make_directory(other.directory)
    client.start(other.directory, 0, 60.0, 1.0)
    other.connect()
    other.wire.send(b"stop", b"0")
    other.wait_end()
    assert [path.name for path in rig.directory.parent.iterdir()] == [rig.directory.name]
    rig.wire.send(b"stop", b"0")
    rig.wait_end()
    assert not rig.directory.parent.exists()
    other.wire.close()


def test_last_words_of_a_crash_stay_until_they_are_removed(rig: Rig) -> None:
    log = rig.directory / "supervisor.log"
    log.write_text("Traceback")
    os.kill(rig.pid, signal.SIGKILL)
    rig.wait_end()
    assert client.last_words(rig.directory) == "Traceback"
    client.remove_directory(rig.directory)
    assert client.last_words(rig.directory) == ""
    assert not rig.directory.exists()


def test_waiting_for_a_directory_to_be_free_is_bounded(rig: Rig) -> None:
    assert not client.wait_until_free(rig.directory, 0.05)
    assert running(rig.pid)
    rig.wire.send(b"stop", b"0")
    assert client.wait_until_free(rig.directory, 20)
    assert client.wait_until_free(rig.directory, 0)


# -- size -------------------------------------------------------------------------------------------------------------

_MODULES = """
import sys
sys.argv = ["main.py"]
import importlib.util
spec = importlib.util.spec_from_file_location("main", sys.stdin.readline().strip())
main = importlib.util.module_from_spec(spec)
spec.loader.exec_module(main)
before = set(sys.modules)
main._stand_in_packages()
from ray_launcher.node import guard, supervisor
print(*sorted(set(sys.modules) - before))
"""


def test_the_supervisor_imports_nothing_heavy() -> None:
    command = [sys.executable, "-I", "-S", "-c", _MODULES]
    main = str(Path(client.__file__).with_name("main.py"))
    done = subprocess.run(command, input=main, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "ray_launcher.node.supervisor" in imported
    assert not {"ray", "typing", "dataclasses", "pathlib", "subprocess", "asyncio", "re", "logging"} & imported


def test_the_supervisor_stays_small_whatever_payloads_it_has_passed_on(rig: Rig) -> None:
    for _ in range(200):
        rig.launch("/bin/sleep", "9999", env={"PAYLOAD": "x" * 100_000}, stdio=False)
    rig.wire.barrier()
    resident = int(Path(f"/proc/{rig.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert resident < 16 << 20


def test_a_thousand_launches_leave_nothing_behind(rig: Rig) -> None:
    def round_of_launches() -> int:
        tokens = [rig.sh("echo $$ >&2") for _ in range(250)]
        rig.wire.send(b"ack", b"%d" % max(rig.exit(token).sequence for token in tokens))
        rig.wire.barrier()
        return int(Path(f"/proc/{rig.pid}/statm").read_text().split()[5])

    before = round_of_launches()
    pages = [round_of_launches() for _ in range(3)]
    assert pages[-1] <= before + 64  # a quarter of a mebibyte
