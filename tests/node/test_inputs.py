"""What a proc reads: a pipe or a terminal whose other end the supervisor holds, and what a terminal shows."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from node_rig import Rig, Wire, running, stat, until

from ray_launcher.node.limits import Limits

#: Beyond what a pipe and the supervisor's buffer hold.
MUCH = bytes(range(256)) * 4096
TERMINAL = b"terminal 24 80"


class Writer:
    """Sends input as an agent does: what has not been taken yet again, until it is."""

    def __init__(self, wire: Wire, token: bytes, name: bytes = b"w") -> None:
        self.wire, self.token, self.name = wire, token, name
        self.taken = 0

    def put(self, data: bytes = b"", offset: int | None = None, *, last: bool = False) -> tuple[int, str]:
        """One piece; how much of this writer's has been taken by then, and the state."""
        at = b"%d" % (self.taken if offset is None else offset)
        self.wire.send(b"input", self.token, self.name, at, b"%d" % last, data)
        return self.answer()

    def answer(self) -> tuple[int, str]:
        mine = [b"took", self.token, self.name]
        *_, taken, state = self.wire.expect(lambda frame: frame[:3] == mine, "an answer")
        self.taken = int(taken)
        return self.taken, state.decode()

    def write(self, data: bytes, *, last: bool = False) -> None:
        end = self.taken + len(data)
        state = ""
        while self.taken < end:
            left = data[len(data) - (end - self.taken) :]
            _, state = self.put(left, last=last)
            assert state != "shut" or self.taken == end


def piped(rig: Rig, script: str) -> tuple[bytes, Writer]:
    token = rig.sh(script, stdin=b"pipe")
    return token, Writer(rig.wire, token)


def in_terminal(rig: Rig, script: str) -> tuple[bytes, Writer]:
    token = rig.sh(script, stdin=TERMINAL)
    return token, Writer(rig.wire, token)


def sees(rig: Rig, token: bytes, text: bytes) -> None:
    until(lambda: text in rig.output(token), f"{text!r} in the output: {rig.output(token)!r}")


def descriptors(pid: int) -> list[str]:
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(fd.readlink()))
        except OSError:
            continue
    return sorted(found)


# -- pipes --------------------------------------------------------------------------------------------------------


def test_a_pipe_brings_every_byte_in_order_and_then_the_end(rig: Rig) -> None:
    token, writer = piped(rig, "cat")
    writer.write(MUCH)
    assert writer.put(last=True) == (len(MUCH), "shut")
    assert rig.exit(token).value == 0
    assert rig.output(token) == MUCH


def test_what_is_sent_again_is_not_read_again(rig: Rig) -> None:
    token, writer = piped(rig, "cat")
    assert writer.put(b"abc", 0) == (3, "pipe")
    assert writer.put(b"abc", 0) == (3, "pipe")
    assert writer.put(b"bcde", 1) == (5, "pipe")
    assert writer.put(b"abcde", 0, last=True) == (5, "shut")
    assert rig.exit(token).value == 0
    assert rig.output(token) == b"abcde"


def test_a_gap_is_not_taken(rig: Rig) -> None:
    token, writer = piped(rig, "cat")
    assert writer.put(b"abc", 7) == (0, "pipe")
    writer.put(last=True)
    rig.exit(token)
    assert rig.output(token) == b""


def test_each_writer_counts_its_own(rig: Rig) -> None:
    token, writer = piped(rig, "cat")
    other = Writer(rig.wire, token, b"other")
    assert (writer.put(b"a"), other.put(b"b"), writer.put(b"c")) == ((1, "pipe"), (1, "pipe"), (2, "pipe"))
    writer.put(last=True)
    rig.exit(token)
    assert rig.output(token) == b"abc"


def test_a_program_that_does_not_read_is_given_no_more_than_a_buffer_and_holds_up_nobody(rig: Rig) -> None:
    token, writer = piped(rig, "exec sleep 9999")
    taken, state = writer.put(MUCH)
    assert state == "pipe"
    assert 0 < taken < len(MUCH)
    more, _ = writer.put(MUCH[taken:])  # the pipe has taken from the buffer meanwhile, perhaps
    rig.wire.send(b"input", token, b"w", b"%d" % more, b"0", MUCH[more:])  # there is no room for it
    assert rig.exit(rig.launch("/bin/true")).value == 0
    assert not any(frame[0] == b"took" for frame in rig.wire.frames)
    assert rig.output(token) == b""
    os.kill(rig.started(token), signal.SIGKILL)
    assert writer.answer()[1] == "shut"  # whoever waits for room is told


def test_whoever_waits_for_room_is_told_when_there_is_some(rig: Rig) -> None:
    token, writer = piped(rig, "kill -STOP $$; wc -c")
    pid = rig.started(token)
    until(lambda: stat(pid)[0] == "T", "it is stopped")
    while writer.taken < len(MUCH):
        before = writer.taken
        rig.wire.send(b"input", token, b"w", b"%d" % before, b"0", MUCH[before:])
        rig.wire.barrier()
        if not any(frame[0] == b"took" for frame in rig.wire.frames):
            break
        writer.answer()
    os.kill(pid, signal.SIGCONT)
    writer.answer()
    writer.write(MUCH[writer.taken :])
    writer.put(last=True)
    rig.exit(token)
    assert int(rig.output(token)) == len(MUCH)


def test_a_program_that_has_closed_its_stdin_ends_the_input(rig: Rig) -> None:
    token, writer = piped(rig, "exec <&-; echo closed; exec sleep 9999")
    rig.words(token)
    assert writer.put(b"a")[1] == "shut"
    assert writer.put(b"b") == (1, "shut")
    assert running(rig.started(token))


@pytest.mark.parametrize("launch", ["unknown", "without", "ended"])
def test_there_is_no_input_for_what_does_not_want_it(rig: Rig, launch: str) -> None:
    token = b"unknown"
    if launch == "without":
        token = rig.sh("exec sleep 9999")
    if launch == "ended":
        token = rig.sh("exit", stdin=b"pipe")
        rig.exit(token)
        rig.wire.send(b"gone", token)
        rig.wire.verb(b"gone")
    assert Writer(rig.wire, token).put(b"a") == (0, "none")


def test_an_agent_that_comes_later_goes_on_where_the_one_before_was(rig: Rig) -> None:
    token, writer = piped(rig, "cat")
    writer.put(b"abc")
    writer.wire = rig.connect()
    assert writer.put(b"abcdef", 0, last=True) == (6, "shut")
    rig.exit(token)
    assert rig.output(token) == b"abcdef"


def test_no_child_inherits_the_other_end_of_an_input(rig: Rig) -> None:
    first, writer = piped(rig, "cat")
    in_terminal(rig, "exec sleep 9999")
    shown = "import os; print([name for name in os.listdir('/proc/self/fd') if int(name) > 2])"
    for stdin in (b"", b"pipe", TERMINAL):
        token = rig.python(shown, stdin=stdin)
        rig.exit(token)
        assert rig.output(token).strip() == b"['3']"  # the directory
    writer.put(last=True)
    assert rig.exit(first).value == 0  # nobody else holds it open


def test_descriptors_are_closed_with_their_procs(rig: Rig) -> None:
    before = descriptors(rig.pid)
    for n in range(20):
        token = rig.sh("exit", stdin=b"pipe" if n % 2 else TERMINAL)
        rig.exit(token)
        failed = rig.launch("/nonexistent", stdin=b"pipe" if n % 2 else TERMINAL)
        rig.exit(failed)
        rig.wire.send(b"gone", token)
        rig.wire.verb(b"gone")
    until(lambda: descriptors(rig.pid) == before, "they are closed")


def test_without_a_descriptor_left_the_launch_fails_and_says_so(rig: Rig) -> None:
    with rig.without_descriptors():
        end = rig.exit(rig.launch("/bin/cat", stdin=b"pipe", stdio=False))
    assert end.kind == "failed"
    assert "cannot open a pipe for its stdin: Too many open files" in end.reason


# -- terminals ----------------------------------------------------------------------------------------------------


def test_a_terminal_is_all_three_streams_and_the_controlling_one(rig: Rig) -> None:
    token, _ = in_terminal(rig, 'test -t 0 && test -t 1 && test -t 2 && tty && echo "here" >/dev/tty && stty size')
    assert rig.exit(token).value == 0
    lines = rig.output(token).decode().split("\r\n")
    assert lines[0].startswith("/dev/pts/")
    assert lines[1:] == ["here", "24 80", ""]
    assert stat(rig.pid)[4] == "0"  # it is not the supervisor's
    assert rig.output(token, "err") == b""


def test_keys_are_echoed_and_control_c_interrupts_the_foreground(rig: Rig) -> None:
    script = "trap 'echo interrupted' INT; echo ready; read -r line; echo got $line; while :; do sleep 0.05; done"
    token, writer = in_terminal(rig, script)
    sees(rig, token, b"ready")
    writer.write(b"hello\n")
    sees(rig, token, b"hello\r\ngot hello\r\n")  # a line that is not read yet would go with Control-C
    writer.write(b"\x03")
    sees(rig, token, b"^C")
    sees(rig, token, b"interrupted")


def test_control_d_is_a_key_and_ends_what_reads(rig: Rig) -> None:
    token, writer = in_terminal(rig, "cat; cat; echo over")
    writer.write(b"a\n\x04")
    sees(rig, token, b"a\r\na\r\n")
    writer.write(b"b\n\x04")
    rig.exit(token)
    assert rig.output(token).endswith(b"b\r\nb\r\nover\r\n")


def test_a_new_size_is_told_to_the_foreground(rig: Rig) -> None:
    token, _ = in_terminal(rig, "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done")
    sees(rig, token, b"ready")
    rig.wire.send(b"resize", token, b"33", b"111")
    sees(rig, token, b"33 111")


def test_all_that_a_terminal_showed_is_in_the_log_when_the_exit_is_told(rig: Rig) -> None:
    for _ in range(10):
        token, _ = in_terminal(rig, "seq 20000; echo end")
        rig.exit(token)
        assert rig.output(token).replace(b"\r", b"") == b"".join(b"%d\n" % n for n in range(1, 20001)) + b"end\n"


def test_a_terminal_whose_output_is_discarded_blocks_nobody(rig: Rig) -> None:
    assert rig.exit(rig.launch("/usr/bin/seq", "200000", stdin=TERMINAL, stdio=False)).value == 0


def test_a_session_in_a_terminal_is_hung_up_with_its_supervisor(rig: Rig) -> None:
    token, _ = in_terminal(rig, "trap '' TERM; echo $$; while :; do sleep 0.05; done")
    sees(rig, token, b"\r\n")
    pid = int(rig.output(token))
    os.kill(rig.pid, signal.SIGKILL)
    rig.gone(pid)


def test_a_supervisor_with_a_terminal_that_is_quiet_does_nothing(rig: Rig) -> None:
    token, _ = in_terminal(rig, "exec <&- >&- 2>&-; exec sleep 9999")
    pid = rig.started(token)
    until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "it has closed its streams")
    before = stat(rig.pid)[11:13]
    time.sleep(0.3)  # what would spin would have used all of it
    assert sum(map(int, stat(rig.pid)[11:13])) - sum(map(int, before)) < 15


def test_limits_hold_in_a_terminal_too(rig: Rig) -> None:
    token = rig.launch("/bin/sh", "-c", "umask; tty", stdin=TERMINAL, limits=Limits(umask=0o077))
    assert rig.exit(token).value == 0
    assert rig.output(token).startswith(b"0077\r\n/dev/pts/")
