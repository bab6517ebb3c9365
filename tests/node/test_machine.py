"""Any order of connecting, launching, ending and acknowledging: what a new agent is told is what there is."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from node_rig import Exit, Rig, until

from ray_launcher.node.spec import Spec

_ANY = list(HealthCheck)


class SupervisorMachine(RuleBasedStateMachine):
    """One supervisor, and what its agents must know of it."""

    def __init__(self) -> None:
        super().__init__()
        self._root = Path(tempfile.mkdtemp(prefix="machine-"))
        self._root.chmod(0o700)
        self._rig = Rig(self._root)
        self._rig.start()
        self._rig.connect()
        self._away = False
        self._specs: list[Spec] = []
        self._running: dict[bytes, int] = {}  # pid by token
        self._ended: dict[bytes, int | None] = {}  # by token: what it ended with
        self._kept: dict[bytes, int] = {}  # sequence numbers of reports that are not acknowledged
        self._signals = 0

    def teardown(self) -> None:
        if self._away:
            self._rig.connect()
        self._rig.stop()
        shutil.rmtree(self._root)

    # -- procs ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self._away)
    @rule(note=st.binary(max_size=20), times=st.integers(1, 3))
    def launch(self, note: bytes, times: int) -> None:
        spec = Spec(
            token=b"machine-%d" % len(self._specs),
            program=b"/bin/sh",
            argv=[b"sh", b"-c", b"trap 'exit 3' USR1; echo $$ >> $0; while :; do sleep 0.01; done"],
            environ=[f"RAY_LAUNCHER_ID={self._rig.marker}/machine-{len(self._specs)}".encode()],
            note=note,
        )
        spec.argv.append(os.fsencode(self._file(spec.token)))
        for _ in range(times):
            self._rig.wire.send(b"launch", *spec.fields())
        self._specs.append(spec)
        pid = self._said(spec.token)
        self._running[spec.token] = int(pid)

    @precondition(lambda self: self._specs and not self._away)
    @rule(choice=st.integers(0))
    def launch_again(self, choice: int) -> None:
        spec = self._specs[choice % len(self._specs)]
        if spec.token in self._running or spec.token in self._kept:  # else it has been acknowledged: nobody does that
            self._rig.wire.send(b"launch", *spec.fields())
            self._rig.wire.barrier()

    @precondition(lambda self: self._running)
    @rule(choice=st.integers(0), how=st.sampled_from(["itself", "kill", "terminate", "signal"]))
    def end(self, choice: int, how: str) -> None:
        token = list(self._running)[choice % len(self._running)]
        pid = self._running[token]
        self._signals += 1
        if how == "itself" or self._away:
            os.kill(pid, signal.SIGUSR1)
            value = 3
        elif how == "kill":
            self._rig.wire.send(b"kill", token)
            value = signal.SIGKILL
        elif how == "terminate":
            self._rig.wire.send(b"terminate", token, b"9999")
            value = signal.SIGTERM
        else:
            for _ in range(2):
                number = b"%d" % self._signals
                self._rig.wire.send(b"signal", token, b"%d" % signal.SIGUSR1, b"the machine", number)
            value = 3
        del self._running[token]
        self._ended[token] = value
        if self._away:
            self._rig.gone(pid)
            self._kept[token] = 0  # its number is told to the next agent
        else:
            self._heard(self._rig.exit(token))

    @precondition(lambda self: self._kept and not self._away)
    @rule(choices=st.sets(st.integers(0, 5), max_size=3))
    def acknowledge(self, choices: set[int]) -> None:
        tokens = {list(self._kept)[choice % len(self._kept)] for choice in choices}
        if tokens:
            self._rig.wire.send(b"ack", *(b"%d" % self._kept.pop(token) for token in tokens))

    # -- agents ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self._away)
    @rule()
    def leave(self) -> None:
        self._rig.wire.barrier()  # what was sent has arrived
        self._rig.wire.close()
        self._away = True

    @rule()
    def come(self) -> None:
        if not self._away:
            self._rig.wire.barrier()
        self._rig.connect()
        self._away = False
        told = [Exit.parse(frame[1:]) for frame in self._rig.wire.frames if frame[0] == b"exit"]
        told = [end for end in told if not end.token.startswith(b"barrier")]
        assert {end.token for end in told} == self._kept.keys()
        for end in told:
            self._heard(end)
        self._rig.wire.frames.clear()
        notes = {spec.token: spec.note for spec in self._specs}
        listed = list(
            zip(self._rig.listed[0::4], map(int, self._rig.listed[1::4]), self._rig.listed[3::4], strict=True)
        )
        assert listed == [(token, pid, notes[token]) for token, pid in self._running.items()]

    @precondition(lambda self: not self._away)
    @rule(seconds=st.sampled_from([5.0, 60.0, float("inf")]))
    def renew(self, seconds: float) -> None:
        self._rig.wire.send(b"lease", b"%r" % (time.monotonic() + seconds + 30))

    @rule(noise=st.binary(max_size=40))
    def stranger(self, noise: bytes) -> None:
        stranger = self._rig.dial(hello=False)
        stranger.sock.sendall(noise)
        stranger.close()

    @invariant()
    def each_was_started_once(self) -> None:
        for spec in self._specs:
            assert self._file(spec.token).read_text().count("\n") == 1

    # -- helpers --------------------------------------------------------------------------------------------------

    def _heard(self, end: Exit) -> None:
        assert end.value == self._ended[end.token]
        assert self._kept.get(end.token) in (None, 0, end.sequence)
        self._kept[end.token] = end.sequence

    def _file(self, token: bytes) -> Path:
        return self._root / token.decode()

    def _said(self, token: bytes) -> str:
        path = self._file(token)
        return until(lambda: path.read_text().strip() if path.exists() else "", f"{token!r} says its pid")


def _play(examples: int, steps: int) -> None:
    chosen = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=_ANY)
    run_state_machine_as_test(SupervisorMachine, settings=chosen)


def test_a_new_agent_is_told_what_there_is() -> None:
    _play(12, 20)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_new_agent_is_told_what_there_is_whatever_went_before() -> None:
    _play(300, 50)
