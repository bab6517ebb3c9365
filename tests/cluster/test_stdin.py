"""What procs are given to read, from the driver down the whole chain, whatever is killed on the way."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray_rig import Nodes, ended, living, pid_of, python, shell
from victims import Victims

from ray_launcher import Exited, LaunchOptions, ProcLauncherError, RayProcLauncher, Stdin, UnknownProcError
from ray_launcher.cluster.inside import InsideError, surroundings
from ray_launcher.cluster.wire import Inside

#: Tells how much it has read, and of what, and keeps up with nobody.
COUNT = """
import hashlib, os, sys, time
total, digest = 0, hashlib.sha256()
while data := os.read(0, 4096):
    total += len(data)
    digest.update(data)
    time.sleep(0.0005)
print(total, digest.hexdigest())
"""


def lines(launcher: RayProcLauncher, proc_id: str) -> Iterator[str]:
    return (line.rstrip("\r") for line in launcher.logs(proc_id, follow=True))


def numbered(count: int) -> bytes:
    return b"".join(b"%d\n" % n for n in range(count))


# -- pipes --------------------------------------------------------------------------------------------------------


def test_every_byte_is_read_in_order_and_then_the_end(shared: RayProcLauncher) -> None:
    data = numbered(300_000)
    port = shared.launch("reads", shell("sha256sum", want_stdin=True)).exit_port
    stdin = shared.stdin("reads")
    stdin.write(data)
    stdin.close()
    assert ended(port).ok
    assert next(iter(shared.logs("reads"))).split()[0] == hashlib.sha256(data).hexdigest()


def test_without_being_asked_for_stdin_is_at_its_end(shared: RayProcLauncher) -> None:
    with living(shared, "reads not", shell('test -z "$(cat)" && echo empty; exec sleep 9999')):
        assert next(lines(shared, "reads not")) == "empty"
        with pytest.raises(ProcLauncherError, match="launch it with want_stdin=True or tty=True"):
            shared.stdin("reads not").write(b"a")


def test_what_a_program_answers_can_be_answered(shared: RayProcLauncher) -> None:
    with living(shared, "talks", shell('while read -r line; do echo "<$line>"; done', want_stdin=True)):
        stdin, answers = shared.stdin("talks"), lines(shared, "talks")
        for word in ("one", "two", "three"):
            stdin.write(word.encode() + b"\n")
            assert next(answers) == f"<{word}>"


def test_nobody_writes_to_what_has_ended_or_never_was(shared: RayProcLauncher) -> None:
    port = shared.launch("brief", shell("exit", want_stdin=True)).exit_port
    ended(port)
    with pytest.raises(BrokenPipeError, match="has ended"):
        shared.stdin("brief").write(b"a")
    shared.stdin("brief").close()
    with pytest.raises(UnknownProcError):
        shared.stdin("never").write(b"a")


def test_a_program_that_has_closed_its_stdin_breaks_the_pipe(shared: RayProcLauncher) -> None:
    with living(shared, "deaf", shell("exec <&-; echo closed; exec sleep 9999", want_stdin=True)):
        assert next(lines(shared, "deaf")) == "closed"
        stdin = shared.stdin("deaf")
        stdin.write(b"finds out")
        with pytest.raises(BrokenPipeError, match="has closed its stdin"):
            stdin.write(b"a")


def test_a_closed_stdin_takes_no_more(shared: RayProcLauncher) -> None:
    with living(shared, "reads", shell("cat; exec sleep 9999", want_stdin=True)):
        stdin = shared.stdin("reads")
        stdin.close()
        stdin.close()
        with pytest.raises(ValueError, match="has been closed here"):
            stdin.write(b"a")


@pytest.mark.parametrize("data", ["text", 1, None])
def test_input_that_is_no_bytes_is_refused(shared: RayProcLauncher, data: Any) -> None:
    with pytest.raises(TypeError, match="data must be bytes"):
        shared.stdin("anything").write(data)


def write_lines(stdin: Stdin) -> None:
    for _ in range(100):
        stdin.write((b"a line " + b"x" * 500 + b"\n") * 2)
    for _ in range(100):
        stdin.write((b"a line " + b"x" * 500 + b"\n") * 8)


def test_several_writers_are_all_read_and_their_lines_stay_whole(shared: RayProcLauncher) -> None:
    port = shared.launch("reads", shell("sort | uniq -c | sort -n | head -1", want_stdin=True)).exit_port
    writers = [shared.stdin("reads") for _ in range(3)]
    threads = [threading.Thread(target=write_lines, args=[each]) for each in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writers[0].close()
    ended(port)
    assert [line.split() for line in shared.logs("reads")] == [["3000", "a", "line", *["x" * 500]]]


@pytest.mark.parametrize("victim", ["agent", "spawner", "agent and spawner", "agent, as Ray ends it"])
def test_input_is_read_exactly_once_whatever_is_killed_meanwhile(
    launcher: RayProcLauncher, nodes: Nodes, victim: str
) -> None:
    data = numbered(400_000)
    port = launcher.launch("reads", python(COUNT, nodes.on("a"), want_stdin=True)).exit_port
    stdin = launcher.stdin("reads")
    half = len(data) // 2
    stdin.write(data[:half])
    victims = Victims(launcher, nodes.ids()["a"])
    killer = threading.Timer(0.05, victims.strike, [victim])
    killer.start()
    stdin.write(data[half:])
    killer.join()
    stdin.close()
    assert ended(port).kind == Exited(0)
    assert list(launcher.logs("reads")) == [f"{len(data)} {hashlib.sha256(data).hexdigest()}"]


def write_on(stdin: Stdin) -> None:
    while True:
        stdin.write(b"a" * 100_000)


def test_the_end_of_the_supervisor_breaks_the_pipe(launcher: RayProcLauncher, nodes: Nodes) -> None:
    launcher.launch("reads", shell("exec sleep 9999", nodes.on("a"), want_stdin=True))
    stdin = launcher.stdin("reads")
    stdin.write(b"a")
    Victims(launcher, nodes.ids()["a"]).strike("supervisor")
    with pytest.raises(BrokenPipeError):
        write_on(stdin)


# -- terminals ----------------------------------------------------------------------------------------------------


def terminal(script: str, **more: Any) -> LaunchOptions:
    return shell(script, tty=True, **more)


def test_a_terminal_has_a_size_that_can_be_changed(shared: RayProcLauncher) -> None:
    script = "stty size; trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    with living(shared, "looks", terminal(script, tty_size=(31, 99))):
        seen = lines(shared, "looks")
        assert [next(seen), next(seen)] == ["31 99", "ready"]
        shared.stdin("looks").resize(40, 120)
        assert next(seen) == "40 120"


def test_keys_reach_the_program_and_closing_is_control_d(shared: RayProcLauncher) -> None:
    port = shared.launch("shell", terminal("cat; echo over")).exit_port
    stdin = shared.stdin("shell")
    assert stdin.tty
    stdin.write(b"hello\n")
    seen = lines(shared, "shell")
    assert [next(seen), next(seen)] == ["hello", "hello"]
    stdin.close()
    assert ended(port).ok
    assert list(seen) == ["over"]


def test_a_terminal_outlives_what_is_above_it(launcher: RayProcLauncher, nodes: Nodes) -> None:
    script = "trap 'echo interrupted' INT; while read -r line || :; do echo \"<$line>\"; done"
    launcher.launch("shell", terminal(script, placement=nodes.on("a")))
    stdin, seen = launcher.stdin("shell"), lines(launcher, "shell")
    stdin.write(b"one\n")
    assert [next(seen), next(seen)] == ["one", "<one>"]
    Victims(launcher, nodes.ids()["a"]).strike("agent and spawner")
    stdin.write(b"two\n")
    assert [next(seen), next(seen)] == ["two", "<two>"]
    stdin.resize(10, 20)


@pytest.mark.parametrize("size", [(0, 80), (24, 65_536), (24,), "24", (24, "80"), (True, False)])
def test_a_size_that_is_none_is_refused(shared: RayProcLauncher, size: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"LaunchOptions\.tty_size"):
        terminal("exit", tty_size=size)


# -- within a proc ------------------------------------------------------------------------------------------------


def test_an_exec_has_the_environment_and_directory_of_its_proc(shared: RayProcLauncher, nodes: Nodes) -> None:
    opts = shell("cd /usr; exec sleep 9999", nodes.on("a"), env={"A": "theirs", "B": "theirs"}, cwd="/tmp")
    with living(shared, "target", opts):
        pid = pid_of(shared, "target")
        show = 'pwd; echo "$A $B $C $RAY_LAUNCHER_ID ${CUDA_VISIBLE_DEVICES-none}"'
        launch = shared.exec("target", shell(show, env={"B": "ours", "C": "ours", "CUDA_VISIBLE_DEVICES": "0"}))
        assert launch.proc_id.startswith("target.exec-")
        assert ended(launch.exit_port).ok
        where, facts = list(shared.logs(launch.proc_id))
        words = facts.split(" ")
        assert (where, words[:3]) == ("/usr", ["theirs", "ours", "ours"])
        assert words[-1] == ""  # no more accelerators than the proc has
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert words[3].encode() not in environ
        assert next(i for i in shared.procs() if i.proc_id == launch.proc_id).node_id == nodes.ids()["a"]


def test_an_exec_can_go_into_a_proc_of_another_session(launcher: RayProcLauncher, shared: RayProcLauncher) -> None:
    with living(shared, "target", shell("exec sleep 9999", env={"A": "theirs"})):
        pid_of(shared, "target")
        launch = launcher.exec("target", shell('echo "$A"; exit 7'), of=shared)
        assert ended(launch.exit_port).kind == Exited(7)
        assert list(launcher.logs(launch.proc_id)) == ["theirs"]


def test_an_exec_sees_gpus_as_its_proc_does(shared: RayProcLauncher, nodes: Nodes, all_free: None) -> None:
    opts = shell("exec sleep 9999", replace(nodes.on("a"), num_gpus=1))
    with living(shared, "target", opts):
        pid = pid_of(shared, "target")
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        launch = shared.exec("target", shell("env | grep CUDA_VISIBLE"))
        ended(launch.exit_port)
        [seen] = list(shared.logs(launch.proc_id))
        assert seen.encode() in environ
        assert seen != "CUDA_VISIBLE_DEVICES="


def test_a_pid_that_is_another_procs_by_now_is_not_joined(shared: RayProcLauncher) -> None:
    with living(shared, "target", shell("exec sleep 9999")):
        pid = pid_of(shared, "target")
        assert str(shared.session) in Path(f"/proc/{pid}/environ").read_text()
        for inside in (Inside("x", "0" * 32, pid), Inside("x", "0" * 32, 1 << 22)):
            with pytest.raises(InsideError, match="proc 'x' has ended: nothing can join it"):
                surroundings(inside)


def test_there_is_no_exec_into_what_does_not_run(shared: RayProcLauncher, nodes: Nodes) -> None:
    ended(shared.launch("ended", shell("exit")).exit_port)
    with pytest.raises(ProcLauncherError, match="does not run: it is EXITED"):
        shared.exec("ended", shell("exit"))
    with pytest.raises(UnknownProcError):
        shared.exec("never", shell("exit"))
    with pytest.raises(ValueError, match="placement must be left out"):
        shared.exec("ended", shell("exit", nodes.on("a")))


def test_an_exec_can_be_a_terminal(shared: RayProcLauncher) -> None:
    with living(shared, "target", shell("exec sleep 9999")):
        pid_of(shared, "target")
        launch = shared.exec("target", terminal("cat"))
        stdin: Stdin = shared.stdin(launch.proc_id)
        stdin.write(b"hello\n")
        seen = lines(shared, launch.proc_id)
        assert [next(seen), next(seen)] == ["hello", "hello"]
        stdin.close()
        assert ended(launch.exit_port).ok
