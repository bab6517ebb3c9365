"""What an exit report says of a proc's stderr."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from node_rig import Rig, marked, stat, until

from ray_launcher.node.tail import MAX_LINE, TRUNCATED


def _resident(pid: int) -> int:
    return int(stat(pid)[21]) * os.sysconf("SC_PAGE_SIZE")


def test_the_last_words_without_a_newline_are_in(rig: Rig) -> None:
    assert rig.exit(rig.sh("printf 'first\\n\\nlast words' >&2; kill -KILL $$")).tail == ["first", "", "last words"]


def test_the_last_words_of_many_procs_at_once_are_all_in(rig: Rig) -> None:
    tokens = [rig.sh(f"printf 'words of {n}' >&2; exit 1") for n in range(100)]
    assert [rig.exit(token).tail for token in tokens] == [[f"words of {n}"] for n in range(100)]


def test_stdout_is_not_in(rig: Rig) -> None:
    assert rig.exit(rig.sh("echo out; echo err >&2")).tail == ["err"]


def test_as_many_lines_as_were_asked_for(rig: Rig) -> None:
    tokens = [rig.sh("seq 1 1000 >&2", tail_lines=lines) for lines in (0, 1, 3)]
    assert [rig.exit(token).tail for token in tokens] == [[], ["1000"], ["998", "999", "1000"]]


def test_a_gigabyte_without_a_newline_neither_blocks_nor_grows_the_supervisor(rig: Rig) -> None:
    before = _resident(rig.pid)
    token = rig.sh("truncate -s 1G /proc/self/fd/2; printf 'the end' >&2")
    (line,) = rig.exit(token).tail
    assert line.endswith("\0the end")
    assert len(line) == len(TRUNCATED) + MAX_LINE
    assert _resident(rig.pid) < before + (8 << 20)


def test_a_quick_writer_of_much_text_is_not_held_back(rig: Rig) -> None:
    token = rig.sh("head -c 300000000 /dev/zero | tr '\\0' 'x' >&2; echo >&2; echo end >&2")
    assert rig.exit(token).tail == [TRUNCATED + "x" * MAX_LINE, "end"]
    rig.log(token, "err").unlink()


def test_the_largest_tail_that_can_be_asked_for_arrives(rig: Rig) -> None:
    """Replacement characters are three bytes each: a report must not outgrow a frame."""
    script = "import os\nfor _ in range(400): os.write(2, b'\\xff' * 65536 + b'\\n')"
    end = rig.exit(rig.python(script, tail_lines=1_000_000))
    assert (end.kind, end.value) == ("exited", 0)
    assert set(end.tail) == {"\ufffd" * MAX_LINE}
    assert rig.exit(rig.python("import os; os.write(2, b'\\n' * 2_000_000)", tail_lines=10_000_000)).tail


def test_a_grandchild_that_holds_stderr_open_does_not_delay_the_report(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(leftover_grace=9999.0)
    token = rig.sh("(trap '' TERM; echo $$; exec sleep 9999) & until test -s /proc/$$/fd/1; do :; done; echo bye >&2")
    assert rig.exit(token).tail == ["bye"]
    assert marked(rig.marker)


def test_a_program_that_truncates_its_own_stderr_still_has_a_tail(rig: Rig) -> None:
    assert rig.exit(rig.sh("echo long line of text >&2; : >/proc/self/fd/2; echo new >&2")).tail == ["new"]


def test_a_program_that_removes_its_log_has_an_empty_tail(rig: Rig) -> None:
    assert rig.exit(rig.sh('echo text >&2; rm "$(readlink /proc/self/fd/2)"')).tail == []


def test_a_log_that_another_launch_wrote_to_before_gives_only_what_is_new(rig: Rig) -> None:
    rig.exit(rig.sh("echo theirs >&2", token=b"first"))
    rig.log(b"second", "err").hardlink_to(rig.log(b"first", "err"))
    assert rig.exit(rig.sh("echo ours >&2", token=b"second")).tail == ["ours"]
    rig.log(b"third", "err").hardlink_to(rig.log(b"first", "err"))
    assert rig.exit(rig.sh("exit 0", token=b"third")).tail == []


# -- files used again ------------------------------------------------------------------------------------------------


def _stopped(rig: Rig) -> bytes:
    """A proc that has its log files and waits for SIGCONT to end."""
    token = rig.sh("kill -STOP $$")
    pid = rig.started(token)
    until(lambda: stat(pid)[0] == "T", "it is stopped")
    return token


def _spare(rig: Rig) -> list[Path]:
    return sorted(rig.logs.glob("ray-launcher-spare-*"))


def test_empty_logs_go_away_and_serve_later_launches(rig: Rig) -> None:
    token = rig.sh("exit 0")
    rig.exit(token)
    until(lambda: len(_spare(rig)) == 2, "both empty files are set aside")
    inodes = {path.stat().st_ino for path in _spare(rig)}
    token = rig.sh("echo out; echo err >&2")
    assert rig.exit(token).tail == ["err"]
    assert {rig.log(token, stream).stat().st_ino for stream in ("out", "err")} == inodes


_STRANGER = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        script = 'echo ready >"$1"; read cue <"$1"; echo strange >&2; echo done >"$1"; exec sleep 9999'
        os.execve("/bin/sh", ["sh", "-c", script, sys.argv[-1], sys.argv[1]], {})
    os._exit(0)
os.wait()
with open(sys.argv[1]) as cue:
    assert cue.readline() == "ready\\n"
"""


def test_a_writer_that_escaped_never_writes_into_another_launchs_log(rig: Rig, tmp_path: Path) -> None:
    """It holds an empty stderr that its own proc has done with, and writes when other launches have theirs."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    rig.exit(rig.python(_STRANGER, str(pipe)))
    for _ in range(3):
        assert rig.exit(rig.sh("exit 0")).tail == []
    tokens = [_stopped(rig) for _ in range(8)]
    pipe.write_text("cue\n")
    assert pipe.read_text() == "done\n"
    for token in tokens:
        rig.wire.send(b"signal", token, b"%d" % signal.SIGCONT)
    assert [rig.exit(token).tail for token in tokens] == [[]] * 8


@pytest.mark.parametrize("stream", ["out", "err"])
def test_a_log_that_somebody_has_open_is_not_used_again(rig: Rig, stream: str) -> None:
    token = _stopped(rig)
    with open(rig.log(token, stream), "ab", buffering=0) as intruder:
        rig.wire.send(b"signal", token, b"%d" % signal.SIGCONT)
        rig.exit(token)
        until(lambda: not rig.log(token, "err").exists(), "its empty logs have gone")
        intruder.write(b"strange\n")
        assert len(_spare(rig)) == 1
        assert [path.read_bytes() for path in _spare(rig)] == [b""]


@pytest.mark.parametrize("meddle", ["chmod 644", "sh -c 'ln $0 $0.other'", "sh -c 'echo x >$0'"])
def test_a_log_that_was_meddled_with_is_not_used_again(rig: Rig, meddle: str) -> None:
    token = rig.sh(f'{meddle} "$(readlink /proc/$$/fd/2)"')
    rig.exit(token)
    until(lambda: _spare(rig), "stdout is set aside")
    rig.wire.barrier()
    assert len(_spare(rig)) == 1


def test_the_number_of_files_set_aside_is_bounded(rig: Rig) -> None:
    for _ in range(3):
        tokens = [rig.sh("exit 0") for _ in range(150)]
        for token in tokens:
            rig.exit(token)
    rig.wire.barrier()
    until(lambda: len(list(rig.logs.iterdir())) <= 256, "no more than 256 files are left")
