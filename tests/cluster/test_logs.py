"""What procs write, read from the driver: now, while it comes, and after the end."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import ray
from node_rig import until
from ray_rig import DEADLINE, Nodes, ended, living, procs_of, python, shell
from victims import agent_on, restarted_spawner

from ray_launcher import (
    LaunchOptions,
    LogChunk,
    LogsLostError,
    Placement,
    ProcLauncherError,
    RayProcLauncher,
    UnknownProcError,
)
from ray_launcher.cluster.logfiles import read, since_offset, tail_offset
from ray_launcher.logs import lines_of
from ray_launcher.node import holes, marks

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


def test_of_many_what_there_is_now_and_of_one_stream(shared: RayProcLauncher, gate: Path) -> None:
    with living(shared, "one", gated("echo 1; echo 2; echo error >&2", ":", gate)):
        assert next(shared.logs("one", "stderr", follow=True)) == "error"
        assert collected(shared.output(["one"], ["stdout"], tail=1)) == {("one", "stdout"): b"2\n"}
        with pytest.raises(ValueError, match='must be "stdout" or "stderr", not \'value\''):
            shared.output(["one"], ["stdout", "value"])


# -- when it was written ------------------------------------------------------------------------------------------

#: By how much a time may be off: the agent's clock is ours, but the kernel's for files is a little behind.
ODD = timedelta(seconds=0.1)
#: Within how many seconds the supervisor has surely looked.
LOOKED = 1.5


def timed(lines: Iterable[str]) -> list[tuple[datetime, str]]:
    parted = [line.partition(" ") for line in lines]
    return [(datetime.fromisoformat(stamp.replace("Z", "+00:00")), line) for stamp, _, line in parted]


def log_directory() -> Path:
    """Of all nodes, which are on one host."""
    node: Any = ray._private.worker._global_node
    return Path(node.get_logs_dir_path())


def marked(launcher: RayProcLauncher, proc_id: str, count: int) -> None:
    """Return when the supervisor has noted so often when its stdout was written."""
    pattern = f"ray-launcher-{launcher.session}-{proc_id}-*.out.times"
    until(
        lambda: [path for path in log_directory().glob(pattern) if path.stat().st_size >= count * marks.SIZE],
        f"{count} marks of {proc_id}",
        DEADLINE,
    )


def test_each_line_has_the_time_when_it_was_written(shared: RayProcLauncher, gate: Path) -> None:
    began = datetime.now(timezone.utc)
    with living(shared, "times", gated("echo one; printf tw", "echo o", gate)):
        marked(shared, "times", 1)
        first, second = timed(shared.logs("times", timestamps=True))
        written = datetime.now(timezone.utc)
        lines = shared.logs("times", follow=True, timestamps=True)
        opening = datetime.now(timezone.utc)
        open_gate(gate)
        again, whole = timed(lines)
    assert [line for _, line in (first, second, again, whole)] == ["one", "tw", "one", "two"]
    assert began - ODD <= first[0] == second[0] == again[0] == whole[0] <= written < opening
    ended_after = timed(shared.logs("times", timestamps=True))
    assert [line for _, line in ended_after] == ["one", "two"]


def test_lines_of_other_seconds_have_other_times_and_since_leaves_the_older_out(
    shared: RayProcLauncher, gate: Path
) -> None:
    with living(shared, "since", gated("echo one", "echo two; exec sleep 9999", gate)):
        marked(shared, "since", 1)
        between = datetime.now(timezone.utc)
        open_gate(gate)
        lines = shared.logs("since", follow=True, since=between)
        assert next(lines) == "two"
        (first, _), (second, _) = timed(shared.logs("since", timestamps=True))
        assert first <= between <= second + ODD
        assert list(shared.logs("since", since=between)) == ["two"]
        assert list(shared.logs("since", since=timedelta(hours=1))) == ["one", "two"]
        assert list(shared.logs("since", since=timedelta(hours=1), tail=1)) == ["two"]
        assert list(shared.logs("since", since=datetime.now(timezone.utc) + timedelta(hours=1))) == []
        marked(shared, "since", 2)
        assert list(shared.logs("since", since=between)) == ["two"]
        assert list(shared.logs("since", since=between, tail=2)) == ["two"]


def test_a_time_without_a_zone_or_of_no_kind_is_refused(shared: RayProcLauncher) -> None:
    with pytest.raises(ValueError, match="since must have a time zone"):
        shared.logs("any", since=datetime(2026, 1, 1))  # noqa: DTZ001  # said above
    with pytest.raises(TypeError, match="since must be a datetime, a timedelta or None, not int"):
        shared.logs("any", since=5)  # type: ignore[arg-type]  # said above


# -- a bound ------------------------------------------------------------------------------------------------------

LIMIT = 64 << 10
#: Numbered lines of a hundred bytes.
NUMBERS = """
import sys
for start in range(0, {0}, 1000):
    sys.stdout.write("".join("%099d\\n" % n for n in range(start, start + 1000)))
"""


def bounded(opts: LaunchOptions) -> LaunchOptions:
    return dataclasses.replace(opts, log_limit=LIMIT)


def test_of_a_bounded_log_the_newest_whole_lines_are_there(shared: RayProcLauncher) -> None:
    port = shared.launch("bounded", bounded(python(NUMBERS.format(100_000)))).exit_port
    ended(port)
    numbers = until(
        lambda: [int(line) for line in shared.logs("bounded")][-1000:] if kept(shared, "bounded") < 2 * LIMIT else [],
        "the rest is freed",
        DEADLINE,
    )
    assert len(numbers) >= LIMIT // 100 - 1
    assert numbers == list(range(100_000 - len(numbers), 100_000))
    assert [int(line) for line in shared.logs("bounded", tail=3)] == [99_997, 99_998, 99_999]
    assert [int(line) for line in shared.logs("bounded", tail=5000)] == numbers
    [chunk] = shared.output(["bounded"], ["stdout"])
    assert (chunk.skipped, chunk.data[:99]) == (0, b"%099d" % numbers[0])


def kept(launcher: RayProcLauncher, proc_id: str) -> int:
    """Bytes of its stdout on disk."""
    [path] = log_directory().glob(f"ray-launcher-{launcher.session}-{proc_id}-*.out")
    return path.stat().st_blocks * 512


def test_a_reader_that_is_overtaken_goes_on_with_a_line_and_learns_how_much_it_missed(
    shared: RayProcLauncher, gate: Path
) -> None:
    script = "import sys; print('first', flush=True); open(sys.argv[1]).read()" + NUMBERS.format(50_000)
    opts = python(script)
    opts = dataclasses.replace(bounded(opts), args=[*opts.args, str(gate)])
    with living(shared, "overtakes", dataclasses.replace(opts)):
        chunks = shared.output(["overtakes"], ["stdout"], follow=True)
        assert next(chunks).data == b"first\n"
        open_gate(gate)
        ended(shared.attach("overtakes").exit_port)
        until(lambda: kept(shared, "overtakes") < 2 * LIMIT, "the rest is freed", DEADLINE)
        rest = list(chunks)
    sizes = [(chunk.skipped, len(chunk.data)) for chunk in rest]
    assert sum(map(sum, sizes)) == 5_000_000
    behind = next(chunk for chunk in rest if chunk.skipped)
    assert int(behind.data[:99]) * 100 + 6 == 5_000_006 - sum(len(c.data) for c in rest[rest.index(behind) :])


# -- where they are -----------------------------------------------------------------------------------------------


def test_each_stream_is_a_file_where_rays_log_tools_look(shared: RayProcLauncher, nodes: Nodes) -> None:
    """`ray logs` and `ray.util.state.list_logs` glob in the log directory of each node's Ray session."""
    port = shared.launch("two/words", shell("echo out; echo err >&2", nodes.on("a"))).exit_port
    ended(port)
    pattern = f"ray-launcher-{shared.session}-two_words-*"
    found = {path.name[-3:]: path.read_text() for path in log_directory().glob(pattern)}
    assert found == {"out": "out\n", "err": "err\n"}


def files_of(session: str) -> list[str]:
    return sorted(path.name for path in log_directory().glob(f"ray-launcher-{session}-*"))


def test_logs_go_when_the_session_forgets_their_procs(nodes: Nodes) -> None:
    with RayProcLauncher(history=2) as launcher:
        for name in ("first", "second", "third", "fourth"):
            ended(launcher.launch(name, shell(f"echo {name}")).exit_port)
        until(lambda: len(files_of(launcher.session)) == 2, "two are left", DEADLINE)
        assert [name.split("-")[3] for name in files_of(launcher.session)] == ["fourth", "third"]
        assert list(launcher.logs("third")) == ["third"]
        ended(launcher.launch("third", shell("echo again")).exit_port)
        until(lambda: len(files_of(launcher.session)) == 2, "two are left", DEADLINE)
        assert list(launcher.logs("third")) == ["again"]
    assert len(files_of(launcher.session)) == 2


def test_marks_go_with_their_log(launcher: RayProcLauncher, gate: Path) -> None:
    with living(launcher, "marked", gated("echo one", ":", gate)):
        marked(launcher, "marked", 1)
    assert launcher.remove("marked") == []
    until(lambda: not files_of(launcher.session), "nothing is left", DEADLINE)


# -- what may be lost ---------------------------------------------------------------------------------------------


def in_thread(lines: Iterator[str]) -> Callable[[], list[str]]:
    """Read all of them in a thread; the function waits for it."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(lines), daemon=True)
    thread.start()

    def result() -> list[str]:
        thread.join(DEADLINE)
        assert not thread.is_alive(), found
        return found

    return result


def test_a_reader_goes_on_when_the_spawner_is_killed(launcher: RayProcLauncher, gate: Path) -> None:
    with living(launcher, "runs", gated("echo one", "echo two", gate)):
        lines = launcher.logs("runs", follow=True)
        assert next(lines) == "one"
        restarted_spawner(launcher)
        open_gate(gate)
        assert list(lines) == ["two"]


@pytest.mark.parametrize("detached", [False, True])
def test_a_reader_whose_proc_waits_for_a_node_goes_on_when_the_spawner_is_killed(nodes: Nodes, detached: bool) -> None:
    launcher = RayProcLauncher(detached=detached, grace=1)
    try:
        launcher.launch("waits", shell("echo up", Placement(label_selector={"zone": "later"})))
        assert launcher.info("waits").state == "PENDING"
        found = RayProcLauncher.find(launcher.session)
        readers = [in_thread(each.logs("waits", follow=True)) for each in (launcher, found)]
        restarted_spawner(launcher)
        with nodes.one_more({"zone": "later"}):
            assert [read() for read in readers] == [["up"], ["up"]]
            launcher.end(0)
    finally:
        launcher.end(0)


def test_a_reader_goes_on_when_the_agent_is_killed(launcher: RayProcLauncher, nodes: Nodes, gate: Path) -> None:
    opts = dataclasses.replace(gated("echo one", "echo two", gate), placement=nodes.on("a"))
    with living(launcher, "runs", opts):
        lines = launcher.logs("runs", follow=True)
        assert next(lines) == "one"
        agent = agent_on(launcher.session, nodes.ids()["a"])
        os.kill(ray.get(agent.info.remote())["pid"], signal.SIGKILL)
        open_gate(gate)
        assert list(lines) == ["two"]


def test_a_lost_node_is_named_by_who_follows_and_by_who_reads_later(nodes: Nodes) -> None:
    with RayProcLauncher(grace=1, lease=3) as launcher, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(ProcessLookupError))  # Ray may have ended the agent, stopped as it is
        with nodes.one_more({"zone": "doomed"}) as node_id:
            port = launcher.launch("doomed", shell("echo up; exec sleep 9999", Placement(node_id=node_id))).exit_port
            lines = launcher.logs("doomed", follow=True)
            assert next(lines) == "up"
            pid = ray.get(agent_on(launcher.session, node_id).info.remote())["pid"]
            os.kill(pid, signal.SIGSTOP)  # it could tell of the end of its procs, else
            stack.callback(os.kill, pid, signal.SIGKILL)
        with pytest.raises(LogsLostError, match=f"node {node_id}.* is lost"):
            list(lines)
        ended(port)
        until(lambda: not procs_of(launcher.session), "its procs are gone", DEADLINE)
        for how in ({}, {"follow": True}, {"tail": 1}):
            with pytest.raises(LogsLostError, match=f"node {node_id}.* is lost"):
                list(launcher.logs("doomed", **how))
        [chunk] = launcher.output(["doomed"])
        assert chunk.data == b""
        assert node_id in chunk.lost
        launcher.close(0)


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


def holed(path: Path, lines: int) -> int:
    """Of so many lines of ten bytes, the first blocks are freed; where the rest begins."""
    path.write_bytes(b"".join(b"%09d\n" % n for n in range(lines)))
    with path.open("rb+") as file:
        holes.free(file.fileno(), 0, 2 * 4096)
    return 2 * 4096


def test_what_was_freed_is_not_read_and_the_line_that_was_cut_neither(tmp_path: Path) -> None:
    path = tmp_path / "log"
    begin = holed(path, 2000)
    for offset in (0, 5, 4096, begin - 1):
        piece = read(path, offset)
        assert (piece.start, piece.data[:10], len(piece.data)) == (8200, b"000000820\n", 20_000 - 8200)
        assert piece.last
    assert read(path, begin).start == begin
    assert read(path, begin).data[:8] == b"0000819\n"


def test_a_tail_that_begins_in_what_was_freed_is_all_that_is_left(tmp_path: Path) -> None:
    path = tmp_path / "log"
    holed(path, 2000)
    assert tail_offset(path, 5) == 19_950
    for lines in (1181, 5000):
        assert read(path, tail_offset(path, lines)).start == 8200


def test_a_log_that_is_freed_while_it_is_read_shows_no_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"%09d\n" % n for n in range(2000)))
    pread = os.pread

    def freed_meanwhile(fd: int, count: int, offset: int) -> bytes:
        data = pread(fd, count, offset)
        if offset == 0:
            holed(path, 2000)
            data = data[:100] + bytes(8092) + data[8192:]
        return data

    monkeypatch.setattr(os, "pread", freed_meanwhile)
    assert read(path, 0).data[:10] == b"000000820\n"


def test_times_of_a_piece_are_those_of_the_first_mark_behind_and_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a\nb\nc\nd\n")
    os.utime(path, (50, 50))
    with open(marks.path_of(os.fsencode(path)), "wb") as file:
        marks.write(file.fileno(), 0, 10.0, 2)
        marks.write(file.fileno(), 1, 20.0, 6)
    assert read(path, 0, timed=True).times == ((2, 10.0), (4, 20.0), (2, 50.0))
    assert read(path, 1, timed=True).times == ((1, 10.0), (4, 20.0), (2, 50.0))
    assert read(path, 4, timed=True).times == ((2, 20.0), (2, 50.0))
    assert read(path, 6, timed=True).times == ((2, 50.0),)
    assert read(path, 8, timed=True).times == ()
    assert [since_offset(path, since) for since in (5, 10, 15, 20, 25, 50, 51)] == [0, 0, 2, 2, 6, 6, 8]


def test_a_line_that_was_begun_before_is_older(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"begun and ended\nnext\n")
    with open(marks.path_of(os.fsencode(path)), "wb") as file:
        marks.write(file.fileno(), 0, 10.0, 5)
    assert since_offset(path, 15) == 16


def test_lines_keep_the_time_of_their_beginning_and_end_where_something_is_missing() -> None:
    one, two = (datetime(2026, 1, 1, 0, 0, second, 5000, timezone.utc) for second in (1, 2))
    chunks = [
        LogChunk("p", "stdout", b"a\nb", one),
        LogChunk("p", "stdout", b"b\nc", two),
        LogChunk("p", "stdout", b"d\n", two, skipped=9),
    ]
    stamps = "2026-01-01T00:00:01.005Z", "2026-01-01T00:00:02.005Z"
    assert list(lines_of(chunks, None)) == [f"{stamps[0]} a", f"{stamps[0]} bb", f"{stamps[1]} c", f"{stamps[1]} d"]
    with pytest.raises(LogsLostError, match="gone"):
        list(lines_of([*chunks, LogChunk("p", "stdout", b"", lost="gone")], 1))
