"""Exits at the very moment of a request, a new agent, a launch sent again: one end each, and it is true."""

from __future__ import annotations

import random
import signal
import time

import pytest
from node_rig import Exit, Rig

#: Procs at once.
_BATCH = 25

#: What a proc does by itself, and how it may then end besides by KILL: (kind, value).
_LIVES: dict[str, set[tuple[str, int]]] = {
    "echo x; exit 7": {("exited", 7), ("signaled", signal.SIGTERM)},
    "echo x; exec sleep 0.01": {("exited", 0), ("signaled", signal.SIGTERM)},
    "trap 'exit 5' TERM; echo x; sleep 0.02 & wait; exit 7": {
        ("exited", 5),
        ("exited", 7),
        ("signaled", signal.SIGTERM),
    },
    "trap '' TERM; echo x; sleep 0.01; exit 7": {("exited", 7), ("signaled", signal.SIGTERM)},
    "echo x; kill -INT $$; exit 7": {("signaled", signal.SIGINT), ("signaled", signal.SIGTERM)},
    "echo x; setsid sleep 0.01 & exit 7": {("exited", 7), ("signaled", signal.SIGTERM)},
}


class _Races:
    """Batches of procs, each with a life of its own; everything else happens to them at random."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self._rig = rig
        self._chance = random.Random(seed)  # noqa: S311  # noise, no secret
        self._heard: dict[bytes, set[tuple[int, str, int | None]]] = {}  # by token: number of the report, kind, value
        self._killed: set[bytes] = set()

    def run(self, cases: int) -> None:
        for _ in range(0, cases, _BATCH):
            self._batch()

    def _batch(self) -> None:
        rig = self._rig
        scripts = {rig.sh(script): script for script in self._chance.choices(list(_LIVES), k=_BATCH)}
        self._heard = {token: set() for token in scripts}
        self._killed.clear()
        give_up = time.monotonic() + 20
        while not all(self._heard.values()):
            assert time.monotonic() < give_up, f"not heard of: {[t for t, ends in self._heard.items() if not ends]}"
            token = self._chance.choice(list(scripts))
            self._happen(token, scripts[token])
            rig.wire.poll(0.001 * self._chance.random())
            self._listen()
        self._reconnect()  # everything that is not acknowledged comes again, and is the same
        rig.wire.barrier()
        self._listen()
        for token, script in scripts.items():
            self._check(token, script)
        rig.wire.send(b"ack", *(b"%d" % sequence for ends in self._heard.values() for sequence, *_ in ends))

    def _happen(self, token: bytes, script: str) -> None:
        rig, what = self._rig, self._chance.random()
        if what < 0.2:
            rig.wire.send(b"kill", token)
            self._killed.add(token)
        elif what < 0.5:
            timeout = self._chance.choice([0.0, 0.001, 0.01, 9999.0])
            rig.wire.send(b"terminate", token, b"%r" % timeout)
            if timeout < 9999:
                self._killed.add(token)
        elif what < 0.6:
            rig.sh(script, token=token)  # by an agent that does not know whether it has been heard
        elif what < 0.62:
            self._reconnect()

    def _reconnect(self) -> None:
        old = self._rig.wire
        self._rig.connect()
        old.close()

    def _listen(self) -> None:
        for frame in self._rig.wire.frames:
            if frame[0] == b"exit" and frame[2] in self._heard:
                end = Exit.parse(frame[1:])
                self._heard[end.token].add((end.sequence, end.kind, end.value))
        self._rig.wire.frames.clear()

    def _check(self, token: bytes, script: str) -> None:
        [(_, kind, value)] = self._heard[token]  # told several times, perhaps, but always the same
        allowed: set[tuple[str, int | None]] = {*_LIVES[script]}
        if token in self._killed:
            allowed.add(("signaled", signal.SIGKILL))
        assert (kind, value) in allowed, f"{script}: {kind} {value}"
        assert self._rig.output(token).count(b"x") <= 1, script


def test_each_of_many_racing_procs_has_one_end(rig: Rig) -> None:
    _Races(rig, seed=1).run(500)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_of_ten_thousand_racing_procs_has_one_end(rig: Rig) -> None:
    _Races(rig, seed=2).run(10_000)
