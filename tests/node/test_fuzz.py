"""Frames that are nearly right, from strangers and from agents: the supervisor lives, and so do its procs."""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path

import pytest
from node_rig import Rig, running

from ray_launcher.node.limits import Limits
from ray_launcher.node.protocol import FrameReader, ProtocolError, pack
from ray_launcher.node.reports import REPORT_BYTES
from ray_launcher.node.spec import Spec

#: Verbs that end procs when they are right.
_LETHAL = {b"stop", b"lease"}


def _corpus(chance: random.Random) -> list[bytes]:
    spec = Spec(
        token=b"fuzz-%d" % chance.randrange(50),
        program=b"/bin/true",
        argv=[b"true", b"x"],
        environ=[b"A=1", b"B=2"],
        unset=[b"C"],
        note=b"note",
        stdin=chance.choice([b"", b"pipe", b"terminal 24 80"]),
        limits=Limits(bind={"cpus": "0"}, rlimits={"core": (0, -1)}, umask=0o77, nice=1, time=9.0, signum=10, lead=1.0),
    )
    number = b"%d" % chance.randrange(-5, 100)
    return [
        pack(b"hello"),
        pack(b"base", b"PATH=/bin", b"A="),
        pack(b"launch", *spec.fields()),
        pack(b"terminate", spec.token, b"0.5"),
        pack(b"kill", spec.token),
        pack(b"signal", spec.token, b"10", b"sender", number),
        pack(b"signal", spec.token, number),
        pack(b"input", spec.token, b"writer", number, b"0", b"data"),
        pack(b"resize", spec.token, number, b"80"),
        pack(b"ack", number, b"3", number),
        pack(b"lease", b"1e9"),
        pack(b"lease", b"nan"),
        pack(b"stop", b"soon"),
    ]


def _mutated(chance: random.Random, data: bytes) -> bytes:
    mutant = bytearray(data)
    for _ in range(chance.choice([0, 1, 1, 2, 5])):
        at = chance.randrange(len(mutant) + 1)
        how = chance.randrange(5)
        if how == 0 and mutant:
            mutant[at % len(mutant)] ^= 1 << chance.randrange(8)
        elif how == 1:
            mutant[at:at] = chance.randbytes(chance.randrange(5))
        elif how == 2:
            del mutant[at : at + chance.randrange(6)]
        elif how == 3:
            mutant[at:at] = mutant[at : at + chance.randrange(20)]
        elif mutant:
            mutant[at % len(mutant)] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
    return bytes(mutant)


def _harmless(data: bytes) -> bool:
    """Whether no frame in it may rightly end all procs; an agent may."""
    with contextlib.suppress(ProtocolError):
        return not any(frame[0] in _LETHAL and frame[1:] != [b"soon"] for frame in FrameReader().feed(data))
    return True


def _fuzz(rig: Rig, seconds: float, seed: int) -> dict[str, int]:
    chance = random.Random(seed)  # noqa: S311  # noise, no secret
    give_up = time.monotonic() + seconds
    count = {"connections": 0, "bytes": 0, "frames": 0}
    while time.monotonic() < give_up:
        agent = chance.random() < 0.5
        wire = rig.dial(hello=agent)
        for _ in range(chance.randrange(1, 30)):
            frames = b"".join(chance.choice(_corpus(chance)) for _ in range(chance.randrange(1, 4)))
            data = _mutated(chance, frames)
            if agent and not _harmless(data):
                continue
            count["frames"] += 1
            count["bytes"] += len(data)
            with contextlib.suppress(ConnectionError):
                wire.sock.sendall(data)
        if chance.random() < 0.3:
            wire.poll(0.01)
        wire.close()
        rig._wires.remove(wire)
        count["connections"] += 1
    return count


def _check(rig: Rig, seconds: float, seed: int) -> None:
    pids = [rig.pids(rig.sh("echo $$; exec sleep 9999"))[0] for _ in range(3)]
    before = _figures(rig)
    count = _fuzz(rig, seconds, seed)
    rig.connect()
    rig.wire.send(b"lease", b"inf")
    assert rig.exit(rig.sh("exit 7")).value == 7
    assert all(map(running, pids))
    fds, resident = _figures(rig)
    assert fds <= before[0] + 1, f"{before} {fds} {count}"
    assert resident < before[1] + REPORT_BYTES, f"{before} {resident} {count}"
    print(f"fuzz: seed {seed}, {seconds} s: {count}; fds {before[0]} -> {fds}, rss {before[1]} -> {resident}")  # noqa: T201


def _figures(rig: Rig) -> tuple[int, int]:
    """Open descriptors, and resident bytes."""
    fds = len(list(Path(f"/proc/{rig.pid}/fd").iterdir()))
    return fds, int(Path(f"/proc/{rig.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_frames_that_are_nearly_right_harm_nobody(rig: Rig) -> None:
    _check(rig, 2.0, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_frames_that_are_nearly_right_harm_nobody_for_minutes(rig: Rig) -> None:
    """The seed is another one each time, and shown."""
    _check(rig, float(os.environ.get("FUZZ_SECONDS", "60")), seed=time.time_ns() % 1_000_000)
