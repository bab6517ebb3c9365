"""What the supervisor owes its agent: idempotence, nothing lost while the agent is away, one agent at a time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from node_rig import Exit, Rig, marked, running, until

from ray_launcher.node.protocol import pack
from ray_launcher.node.spec import Spec

_SLEEP = "echo $$; exec sleep 9999"


def _unacknowledged(rig: Rig) -> list[bytes]:
    """The tokens whose reports a new agent is sent."""
    wire = rig.connect()
    wire.barrier()
    return [Exit.parse(frame[1:]).token for frame in wire.frames if frame[0] == b"exit"]


def test_the_same_token_twice_starts_once(rig: Rig) -> None:
    token = rig.sh(_SLEEP)
    rig.sh(_SLEEP, token=token)
    rig.wire.barrier()
    until(lambda: rig.output(token), "it runs")
    rig.wire.send(b"kill", token)
    rig.exit(token)
    rig.wire.barrier()
    assert rig.output(token).count(b"\n") == 1
    assert not [frame for frame in rig.wire.frames if frame[0] == b"exit"]


def test_a_launch_sent_again_after_its_end_does_not_start_again(rig: Rig) -> None:
    """As an agent does that came back and has not yet read the report."""
    token = rig.sh("echo started")
    rig.exit(token)
    rig.connect()
    rig.sh("echo started", token=token)
    assert rig.exit(token).value == 0
    rig.wire.barrier()
    assert rig.output(token) == b"started\n"


def test_reports_are_sent_again_to_a_new_agent_until_they_are_acknowledged(rig: Rig) -> None:
    tokens = [rig.sh(f"echo {n} >&2; exit {n}") for n in range(3)]
    first = [rig.exit(token) for token in tokens]
    rig.wire.close()
    rig.connect()
    assert [rig.exit(token) for token in tokens] == first
    rig.wire.send(b"ack", *(b"%d" % end.sequence for end in first[:2]))
    left = {first[2].token}
    assert left <= set(_unacknowledged(rig))
    assert not (set(tokens) - left) & set(_unacknowledged(rig))


def test_exits_while_no_agent_is_there_are_kept(rig: Rig) -> None:
    tokens = [rig.sh(f"trap 'echo last {n} >&2; exit {n}' USR1; sleep 9999 & echo $$; wait") for n in range(5)]
    pids = [rig.pids(token)[0] for token in tokens]
    rig.wire.close()
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)
    rig.gone(*pids)
    rig.connect()
    assert [(end.value, end.tail) for end in map(rig.exit, tokens)] == [(n, [f"last {n}"]) for n in range(5)]


def test_a_new_agent_is_told_what_runs(rig: Rig) -> None:
    tokens = [rig.sh(_SLEEP) for _ in range(3)]
    pids = [rig.pids(token)[0] for token in tokens]
    ended = rig.sh("exit 0")
    rig.exit(ended)
    rig.wire.close()
    rig.connect()
    assert rig.listed[0::4] == tokens
    assert list(map(int, rig.listed[1::4])) == pids


def test_a_new_agent_takes_over_from_the_old_one(rig: Rig) -> None:
    token = rig.sh(_SLEEP)
    (pid,) = rig.pids(token)
    old = rig.wire
    rig.connect()
    old.wait_closed()
    assert running(pid)
    rig.wire.send(b"kill", token)
    assert rig.exit(token).value == signal.SIGKILL


def test_what_the_old_agent_still_says_is_not_heard(make_rig: Callable[..., Rig]) -> None:
    """Even where it says hello again: a supervisor whose agent is nobody would never be orphaned."""
    rig = make_rig(orphan_grace=1.0)
    successor = rig.dial(hello=False)
    rig.connect()
    rig.wire.sock.sendall(pack(b"hello") * 500)
    successor.send(b"hello")
    rig.wire.wait_closed()
    successor.close()
    rig.wait_end()


def test_an_agent_that_comes_back_within_the_grace_finds_its_procs(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(orphan_grace=1.0)
    token = rig.sh(_SLEEP)
    (pid,) = rig.pids(token)
    for _ in range(5):
        rig.wire.close()
        rig.connect()
        assert rig.listed[0] == token
    stubborn = rig.sh("trap '' TERM; echo $$; exec sleep 9999")
    rig.pids(stubborn)
    rig.wire.send(b"terminate", stubborn, b"1.5")  # a clock: longer than the grace of any of the absences
    rig.exit(stubborn)
    assert running(pid)


def test_without_an_agent_procs_live_as_long_as_the_grace_and_then_end(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(orphan_grace=1.0, end_grace=9999.0)
    token = rig.sh("trap 'echo term >&2; exit' TERM; sleep 9999 & echo $$; wait")
    (pid,) = rig.pids(token)
    rig.wire.close()
    assert running(pid)
    rig.wait_end()
    rig.none_left()
    assert rig.log(token, "err").read_text() == "term\n"


def test_a_supervisor_that_no_agent_ever_comes_to_ends(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(orphan_grace=1.0)
    rig.wire.close()
    rig.wait_end()
    rig.gone(rig.pid, rig.guard)


def test_a_stranger_that_says_nothing_is_no_agent(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(orphan_grace=1.0)
    rig.dial(hello=False)
    rig.wire.close()
    rig.wait_end()


def test_stop_ends_procs_tells_their_ends_and_says_bye(rig: Rig) -> None:
    polite = rig.sh("trap 'exit 42' TERM; echo $$; while :; do sleep 9999 & wait; done")
    stubborn = rig.sh("trap '' TERM; echo $$; exec sleep 9999")
    rig.pids(polite)
    rig.pids(stubborn)
    rig.wire.send(b"stop", b"0.3")
    assert rig.exit(polite).value == 42
    assert rig.exit(stubborn).value == signal.SIGKILL
    assert rig.wire.verb(b"bye") == []
    rig.wire.wait_closed()
    rig.gone(rig.pid, rig.guard)
    assert not marked(rig.marker)


def test_of_several_stops_the_shortest_grace_holds(rig: Rig) -> None:
    stubborn = rig.sh("trap '' TERM; echo $$; exec sleep 9999")
    rig.pids(stubborn)
    for grace in (b"inf", b"9999", b"0.1", b"9999"):
        rig.wire.send(b"stop", grace)
    assert rig.exit(stubborn).value == signal.SIGKILL
    rig.wire.verb(b"bye")


def test_a_launch_that_comes_after_stop_is_refused(rig: Rig) -> None:
    stubborn = rig.sh("trap '' TERM; echo $$; exec sleep 9999")
    rig.pids(stubborn)
    rig.wire.send(b"stop", b"9999")
    end = rig.exit(rig.sh("exit 0"))
    assert (end.kind, end.reason) == ("failed", "the node's supervisor is ending")
    rig.wire.send(b"stop", b"0")


def test_an_idle_supervisor_stops_at_once_whatever_the_grace(rig: Rig) -> None:
    rig.wire.send(b"stop", b"inf")
    rig.wire.verb(b"bye")
    rig.wire.wait_closed()


def test_an_agent_that_does_not_read_holds_up_nobody(rig: Rig) -> None:
    """More reports than its socket takes; when it reads, all are there."""
    words = "x" * 60_000
    tokens = [rig.sh(f"head -c 60000 /dev/zero | tr '\\0' x >&2; exit {n}") for n in range(100)]
    until(lambda: not marked(rig.marker) and rig.log(tokens[-1], "err").exists(), "all have ended")
    assert [(end.value, end.tail) for end in map(rig.exit, tokens)] == [(n, [words]) for n in range(100)]


def test_a_thousand_commands_in_one_write_are_carried_out_in_order(rig: Rig) -> None:
    specs = [Spec(token=b"n%d" % n, program=b"/bin/sleep", argv=[b"sleep", b"9999"]) for n in range(500)]
    rig.wire.sock.sendall(b"".join(pack(b"launch", *spec.fields()) + pack(b"kill", spec.token) for spec in specs))
    tokens = [spec.token for spec in specs]
    assert {rig.exit(token).value for token in tokens} == {signal.SIGKILL}
