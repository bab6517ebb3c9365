"""A node short of something: clear failures, what runs is unharmed, and all is well when the shortage ends."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from limits import cgroup, without_memory
from node_rig import Exit, Gate, Rig, until
from small_disk import PRESSURES, Pressure, SmallDisk, small_disk

from ray_launcher.node import process
from ray_launcher.node.logfiles import LogFiles
from ray_launcher.node.spawn import Spawner
from ray_launcher.node.spec import Spec

#: A leader with an escaped child, which ignores TERM; both write their pids.
TREE = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child == 0:
    os.setsid()
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(9999)
os.write(1, b"%d\\n" % os.getpid())
"""


def _fails(end: Exit, *words: str) -> None:
    assert (end.kind, end.value, end.tail) == ("failed", None, []), end
    assert all(word in end.reason for word in words), end.reason


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


def waits(rig: Rig, gate: Gate, then: str) -> bytes:
    """A proc that runs, and goes on when the gate is opened."""
    token = rig.sh(f"echo first >&2; echo $$; read -r _ <'{gate.path}'; {then}")
    rig.words(token)
    rig.started(token)  # what the supervisor needed to start it has been given back
    return token


# -- descriptors ------------------------------------------------------------------------------------------------------


def test_without_descriptors_exits_are_told_with_their_last_words(rig: Rig, gate: Gate) -> None:
    token = waits(rig, gate, "echo last >&2; exit 5")
    with rig.without_descriptors():
        gate.open()
        end = rig.exit(token)
    assert (end.value, end.tail) == (5, ["first", "last"])


def test_without_descriptors_a_whole_tree_is_killed(rig: Rig) -> None:
    token = rig.python(TREE + "time.sleep(9999)")
    pids = rig.pids(token, 2)
    with rig.without_descriptors():
        rig.wire.send(b"kill", token)
        assert rig.exit(token).value == signal.SIGKILL
        rig.gone(*pids)


def test_without_descriptors_a_signal_reaches_who_has_escaped(rig: Rig) -> None:
    answer = "signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b'usr1\\n'))"
    token = rig.python(TREE.replace("child =", f"{answer}\nchild =", 1) + "time.sleep(9999)")
    rig.words(token, 2)
    with rig.without_descriptors():
        rig.wire.send(b"signal", token, b"%d" % signal.SIGUSR1)
        assert rig.words(token, 4)[2:] == ["usr1", "usr1"]
    rig.wire.send(b"kill", token)
    rig.exit(token)


def test_without_descriptors_what_outlives_its_leader_is_swept(rig: Rig, gate: Gate) -> None:
    token = rig.python(TREE + f"open({str(gate.path)!r}).read(); os._exit(4)")
    pids = rig.pids(token, 2)
    with rig.without_descriptors():
        gate.open()
        assert rig.exit(token).value == 4
        rig.gone(*pids)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_without_memory_a_launch_fails_and_what_runs_goes_on(rig: Rig, gate: Gate) -> None:
    token = waits(rig, gate, "echo last >&2; exit 5")
    with without_memory(rig.pid):
        _fails(rig.exit(rig.launch("/bin/true")), "cannot fork for '/bin/true'", "out of memory")
        gate.open()
        end = rig.exit(token)
    assert (end.value, end.tail) == (5, ["first", "last"])
    assert rig.exit(rig.launch("/bin/true")).value == 0


def test_without_memory_a_large_launch_gets_its_answer_and_so_do_those_behind_it(rig: Rig) -> None:
    with without_memory(rig.pid):
        for size in (100_000, 1_000, 100_000, 1_000):
            many = range(1_500_000 // size)
            for token in (
                rig.launch("/bin/true", *["x" * size for _ in many]),
                rig.launch("/bin/true", environ=[b"V%d=%s" % (n, b"x" * size) for n in many]),
                rig.launch("/bin/true"),
            ):
                end = rig.exit(token)
                assert end.value == 0 or "out of memory" in end.reason
    assert rig.exit(rig.launch("/bin/true", *["x" * 100_000] * 15)).value == 0


def _no_memory(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("owner, name", [(Spec, "environment"), (Spawner, "start")])
def test_memory_that_runs_out_before_the_program_runs_is_a_failure_of_the_launch(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    monkeypatch.setattr(owner, name, _no_memory)
    spec = Spec(token=b"t", program=b"/bin/true", argv=[b"true"])
    with pytest.raises(process.SetupError) as raised:
        process.Starter(LogFiles()).start(spec, process.environment(spec, {}))
    assert raised.value.code == errno.ENOMEM


def test_without_memory_what_is_too_large_to_be_read_waits_for_it(rig: Rig, gate: Gate) -> None:
    token = waits(rig, gate, "exit 5")
    with without_memory(rig.pid):
        rig.wire.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):  # the kernel holds what the supervisor cannot
            rig.launch("/bin/true", *["x" * 100_000] * 200)
        gate.open()
        assert rig.exit(token).value == 5
    rig.wire.close()
    rig.connect()
    assert rig.exit(rig.launch("/bin/true")).value == 0


def test_without_memory_an_exit_is_told_with_or_without_a_long_tail(rig: Rig, gate: Gate) -> None:
    token = waits(rig, gate, "seq 1 1000000 >&2; exit 5")
    with without_memory(rig.pid):
        gate.open()
        end = rig.exit(token)
    assert end.value == 5
    assert end.tail in ([], [str(n) for n in range(999_901, 1_000_001)])


def test_a_proc_that_takes_all_the_memory_is_killed_alone(rig: Rig, gate: Gate) -> None:
    token = waits(rig, gate, "exit 5")
    with cgroup("memory") as group:
        group.add(rig.pid)
        group.limit_memory(100 << 20)
        greedy = rig.python("taken = []\nwhile True: taken.append(b'x' * (1 << 20))")
        assert rig.exit(greedy).value == signal.SIGKILL
        gate.open()
        assert rig.exit(token).value == 5


# -- processes --------------------------------------------------------------------------------------------------------


def test_without_processes_a_launch_fails_and_what_runs_goes_on(rig: Rig, gate: Gate) -> None:
    token = waits(rig, gate, "echo last >&2; exit 5")
    with cgroup("pids") as group:
        group.add(rig.pid)
        group.limit_tasks(group.tasks())
        _fails(rig.exit(rig.launch("/bin/true")), "cannot fork for '/bin/true'", "limit of processes", "pids cgroup")
        gate.open()
        end = rig.exit(token)
        assert (end.value, end.tail) == (5, ["first", "last"])
        group.limit_tasks(None)
        assert rig.exit(rig.launch("/bin/true")).value == 0


# -- disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", megabytes=1, inodes=20) as disk:
        yield disk


@pytest.fixture
def stored(disk: SmallDisk, tmp_path: Path) -> Iterator[Rig]:
    """Its log files are on that disk."""
    rig = Rig(tmp_path, logs=disk.path / "logs")
    rig.start()
    rig.connect()
    yield rig
    rig.stop()


@pytest.mark.parametrize("pressed, code, remedy", PRESSURES)
def test_a_disk_that_takes_no_log_files_fails_launches_and_what_runs_goes_on(
    stored: Rig,
    gate: Gate,
    disk: SmallDisk,
    pressed: Pressure,
    code: int,
    remedy: str,
) -> None:
    token = waits(stored, gate, "exit 5")
    with pressed(disk):
        _fails(stored.exit(stored.launch("/bin/true")), "the log file '", os.strerror(code), remedy)
        assert stored.exit(stored.launch("/bin/true", stdio=False)).value == 0
        gate.open()
        end = stored.exit(token)
    assert (end.value, end.tail) == (5, ["first"])
    assert stored.exit(stored.sh("echo again >&2; exit 3")).tail == ["again"]


def test_what_a_proc_cannot_write_to_a_full_disk_is_its_own_affair(stored: Rig, gate: Gate, disk: SmallDisk) -> None:
    script = f"import os, sys\nopen({str(gate.path)!r}).read()\ntry:\n os.write(2, b'x' * 8192)\n"
    script += " os.write(2, b'x' * 8192)\nexcept OSError as error:\n os._exit(error.errno)"
    token = stored.python(script)
    stored.started(token)
    with disk.full():
        gate.open()
        assert stored.exit(token).value == errno.ENOSPC


@pytest.mark.parametrize("pressed", [SmallDisk.without_inodes, SmallDisk.read_only])
def test_files_set_aside_are_used_or_kept(stored: Rig, disk: SmallDisk, pressed: Pressure) -> None:
    """None may be forgotten: the end of the rig checks that no file is left."""
    stored.exit(stored.launch("/bin/true"))
    until(lambda: len([*stored.logs.glob("*spare*")]) == 2, "two files are set aside")
    with pressed(disk):
        first, second = stored.exit(stored.sh("echo out; exit 3")), stored.exit(stored.sh("echo out; exit 3"))
    assert (first.kind, second.kind) == (
        ("exited", "failed") if pressed is SmallDisk.without_inodes else ("failed", "failed")
    )
    assert stored.exit(stored.launch("/bin/true")).value == 0
