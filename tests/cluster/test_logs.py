"""What procs write, read from the driver: now, while it comes, and after the end."""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from ray_rig import DEADLINE, Nodes, ended, living, python, shell

from ray_launcher import LaunchOptions, LogChunk, Placement, ProcLauncherError, RayProcLauncher, UnknownProcError
from ray_launcher.cluster.logfiles import tail_offset
from ray_launcher.logs import lines_of

NOWHERE = Placement(label_selector={"zone": "nowhere"})


def gated(before: str, after: str, gate: Path) -> LaunchOptions:
    """Writes, waits until somebody writes a line into the named pipe, and writes again."""
    return shell(f"{before}; read -r _ <'{gate}'; {after}")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def open_gate(gate: Path) -> None:
    with open(gate, "w", encoding="ascii") as pipe:
        pipe.write("go\n")


# -- after the end ------------------------------------------------------------------------------------------------


def written(launcher: RayProcLauncher, opts: LaunchOptions, **how: Any) -> list[str]:
    ended(launcher.launch("writes", opts).exit_port)
    return list(launcher.logs("writes", **how))


def test_stdout_and_stderr_are_read_apart(shared: RayProcLauncher) -> None:
    opts = shell("echo out; echo err >&2")
    assert written(shared, opts) == ["out"]
    assert list(shared.logs("writes", "stderr")) == ["err"]
    with pytest.raises(ValueError, match='must be "stdout" or "stderr", not \'stdin\''):
        shared.logs("writes", "stdin")


def test_a_proc_that_wrote_nothing_has_no_lines(shared: RayProcLauncher) -> None:
    assert written(shared, shell("exit")) == []
    assert list(shared.logs("writes", follow=True)) == []
    assert list(shared.logs("writes", tail=5)) == []


def test_without_stdio_there_is_nothing_to_read(shared: RayProcLauncher) -> None:
    assert written(shared, shell("echo out", want_stdio=False)) == []


def test_blank_lines_and_an_unterminated_last_line_are_kept(shared: RayProcLauncher) -> None:
    assert written(shared, shell("printf '\\n\\none\\n\\nlast'")) == ["", "", "one", "", "last"]


def test_only_newlines_end_lines(shared: RayProcLauncher) -> None:
    assert written(shared, shell("printf 'a\\r\\nb\\fc\\035\\n'")) == ["a\r", "b\fc\x1d"]


def test_bytes_that_are_no_utf8_are_replaced_and_characters_never_cut(shared: RayProcLauncher) -> None:
    script = "import os; os.write(1, b'\\xff\\0' + '\\u20ac'.encode() * 700_000)"  # across several answers
    assert written(shared, python(script)) == ["\ufffd\0" + "\u20ac" * 700_000]


def test_a_very_long_line_is_one_line(shared: RayProcLauncher) -> None:
    [line, end] = written(shared, shell("head -c 20000000 /dev/zero | tr '\\0' x; echo; echo end"))
    assert (len(line), set(line), end) == (20_000_000, {"x"}, "end")


@pytest.mark.parametrize("lines, expected", [(0, []), (1, ["3"]), (2, ["2", "3"]), (9, ["1", "2", "3"])])
@pytest.mark.parametrize("follow", [False, True])
def test_a_tail_is_the_last_so_many_lines(
    shared: RayProcLauncher, lines: int, expected: list[str], follow: bool
) -> None:
    assert written(shared, shell("printf '1\\n2\\n3'"), tail=lines, follow=follow) == expected


@pytest.mark.parametrize("tail", [-1, 1.5, True, "1"])
def test_a_tail_that_is_no_number_of_lines_is_refused(shared: RayProcLauncher, tail: Any) -> None:
    with pytest.raises(ValueError, match="tail must be None or a number of lines"):
        shared.logs("writes", tail=tail)


def test_a_relaunch_has_its_own_output(shared: RayProcLauncher) -> None:
    assert written(shared, shell("echo first")) == ["first"]
    assert written(shared, shell("echo second")) == ["second"]


def test_an_unknown_proc_is_an_error_at_once(shared: RayProcLauncher) -> None:
    for follow in (False, True):
        with pytest.raises(UnknownProcError, match="no proc 'never launched' in session"):
            shared.logs("never launched", follow=follow)


def test_a_launcher_that_is_closed_has_no_logs(launcher: RayProcLauncher) -> None:
    assert written(launcher, shell("echo out")) == ["out"]
    before = launcher.logs("writes", follow=True)
    launcher.close()
    with pytest.raises(ProcLauncherError, match="the launcher is closed"):
        launcher.logs("writes")
    assert list(before) in ([], ["out"])  # it was not looked at in time


# -- while it runs ------------------------------------------------------------------------------------------------


def test_what_there_is_now_does_not_wait_for_more(shared: RayProcLauncher, gate: Path) -> None:
    with living(shared, "runs", gated("printf 'one\\ntw'", ":", gate)):
        assert next(shared.logs("runs", follow=True)) == "one"
        assert list(shared.logs("runs")) == ["one", "tw"]


def test_following_right_after_the_launch_misses_nothing(shared: RayProcLauncher, nodes: Nodes) -> None:
    for n in range(30):
        port = shared.launch("brief", shell(f"echo {n}", nodes.on("a"))).exit_port
        assert list(shared.logs("brief", follow=True)) == [str(n)]
        ended(port)


def test_following_goes_on_until_the_end(shared: RayProcLauncher, gate: Path) -> None:
    with living(shared, "runs", gated("echo one; printf tw", "echo o; printf end", gate)):
        lines = shared.logs("runs", follow=True)
        assert next(lines) == "one"
        open_gate(gate)
        assert list(lines) == ["two", "end"]


def test_following_with_a_tail_starts_there_and_goes_on(shared: RayProcLauncher, gate: Path) -> None:
    with living(shared, "runs", gated("printf '1\\n2\\n3\\n'", "echo 4", gate)):
        assert list(itertools.islice(shared.logs("runs", follow=True), 3)) == ["1", "2", "3"]
        lines = shared.logs("runs", follow=True, tail=1)
        assert next(lines) == "3"
        later = shared.logs("runs", follow=True, tail=0)
        open_gate(gate)
        assert list(lines) == ["4"]
        assert list(later) in (["4"], [])  # nothing has asked the node before the gate was opened


def test_a_proc_without_a_node_has_nothing_yet(shared: RayProcLauncher) -> None:
    with living(shared, "waits", shell("echo up", NOWHERE)):
        assert list(shared.logs("waits")) == []
        following = shared.logs("waits", follow=True)
    assert list(following) == []


def test_following_waits_for_a_node(launcher: RayProcLauncher) -> None:
    port = launcher.launch("first", shell("echo up")).exit_port  # its agent is only being started
    assert list(launcher.logs("first", follow=True)) == ["up"]
    ended(port)


def test_output_of_what_outlives_its_leader_is_not_waited_for(shared: RayProcLauncher) -> None:
    opts = shell("echo leader; sleep 9999 & exit 3")
    port = shared.launch("leads", opts).exit_port
    assert list(shared.logs("leads", follow=True)) == ["leader"]
    assert ended(port).returncode == 3


def test_a_flood_is_followed_without_a_gap(shared: RayProcLauncher) -> None:
    with living(shared, "floods", shell("seq 1 400000")):
        count = 0
        for number, line in enumerate(shared.logs("floods", follow=True), 1):
            assert line == str(number)
            count += 1
    assert count == 400_000


# -- many at once -------------------------------------------------------------------------------------------------


def collected(chunks: Iterable[LogChunk]) -> dict[tuple[str, str], bytes]:
    found: dict[tuple[str, str], bytes] = defaultdict(bytes)
    for chunk in chunks:
        found[chunk.proc_id, chunk.stream] += chunk.data
    return found


def test_many_are_followed_to_their_ends_on_every_node(shared: RayProcLauncher) -> None:
    ids = [f"many {n}" for n in range(200)]
    opts = {proc_id: shell(f"echo '{proc_id}'; echo error >&2; printf {proc_id[5:]}") for proc_id in ids}
    ports = [each.exit_port for each in shared.launch_many(opts).values()]
    found = collected(shared.follow(ids))
    assert {port.wait(DEADLINE).returncode for port in ports} == {0}
    assert found.keys() == set(itertools.product(ids, ("stdout", "stderr")))
    for proc_id in ids:
        assert found[proc_id, "stdout"] == f"{proc_id}\n{proc_id[5:]}".encode()
        assert found[proc_id, "stderr"] == b"error\n"


def test_one_that_is_silent_does_not_hold_up_the_others(shared: RayProcLauncher, gate: Path) -> None:
    with living(shared, "silent", gated(":", ":", gate)):
        ports = [shared.launch(f"quick {n}", shell(f"echo {n}")).exit_port for n in range(20)]
        chunks = shared.follow(["silent", *(f"quick {n}" for n in range(20))])
        heard = {chunk.proc_id for chunk in itertools.islice(chunks, 20)}
        assert len(heard) == 20
        for port in ports:
            ended(port)
        open_gate(gate)
        assert list(chunks) == []


def test_following_nobody_ends_at_once_and_unknown_procs_have_no_output(shared: RayProcLauncher) -> None:
    assert list(shared.follow([])) == []
    assert list(shared.follow(["never launched"])) == []


def test_bytes_arrive_as_they_were_written(shared: RayProcLauncher) -> None:
    port = shared.launch("binary", python("import os; os.write(1, bytes(range(256)) * 5000)")).exit_port
    assert collected(shared.follow(["binary"])) == {("binary", "stdout"): bytes(range(256)) * 5000}
    ended(port)


# -- the parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, lines, offset",
    [
        (b"", 3, 0),
        (b"a", 0, 1),
        (b"a", 1, 0),
        (b"a\n", 1, 0),
        (b"a\nb", 1, 2),
        (b"a\nb\n", 1, 2),
        (b"a\nb\n", 2, 0),
        (b"a\nb\n", 9, 0),
        (b"a\n\n", 1, 2),
        (b"\n\n\n", 2, 1),
        (b"x" * 3_000_000 + b"\n" + b"y" * 3_000_000, 1, 3_000_001),
        (b"x" * 3_000_000 + b"\n" + b"y" * 3_000_000 + b"\n", 2, 0),
        (b"a\n" * 2_000_000, 1_500_000, 1_000_000),
    ],
)
def test_a_tail_begins_behind_the_newline_before_it(tmp_path: Path, content: bytes, lines: int, offset: int) -> None:
    (tmp_path / "file").write_bytes(content)
    assert tail_offset(tmp_path / "file", lines) == offset
    assert tail_offset(tmp_path / "missing", lines) == 0


def test_lines_are_put_together_across_chunks() -> None:
    parts = [b"on", b"e\ntwo\n", b"\n", b"thr", b"", b"ee"]
    chunks = [LogChunk("p", "stdout", data) for data in parts]
    assert list(lines_of(chunks, None)) == ["one", "two", "", "three"]
    assert list(lines_of(chunks, 2)) == ["", "three"]
    assert list(lines_of([], None)) == []
