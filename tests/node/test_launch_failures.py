"""A program that cannot be started gives one report that names the thing and what to do; the node serves on."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_rig import Exit, Rig, Wire, until
from other_user import NOBODY, answer_of, needs_root, process_of

from ray_launcher.node.guard import Fence
from ray_launcher.node.spec import Spec
from ray_launcher.node.supervisor import Graces, Supervisor


@pytest.fixture(autouse=True)
def serves_on(rig: Rig) -> Iterator[None]:
    """After whatever failed: the next launch runs, and the supervisor has no descriptor more than before."""
    rig.wire.barrier()
    before = _descriptors(rig)
    yield
    assert rig.exit(rig.sh("exit 3")).value == 3
    until(lambda: _descriptors(rig) == before, f"its descriptors are {before} again")


def _descriptors(rig: Rig) -> set[str]:
    return {path.name for path in Path(f"/proc/{rig.pid}/fd").iterdir()}


def _file(path: Path, text: str | bytes, mode: int = 0o755) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def _fails(end: Exit, code: int | None, *words: str) -> None:
    assert (end.kind, end.value, end.core, end.tail) == ("failed", code, False, [])
    assert all(word in end.reason for word in words), end.reason


def test_a_missing_program(rig: Rig) -> None:
    _fails(rig.exit(rig.launch("/no/such/program")), 127, "/no/such/program", "not found")


def test_a_path_through_a_file(rig: Rig) -> None:
    _fails(rig.exit(rig.launch("/etc/passwd/program")), 127, "/etc/passwd/program", "not found")


def test_a_program_that_is_not_executable(rig: Rig, tmp_path: Path) -> None:
    program = _file(tmp_path / "script", "#!/bin/sh\n", 0o644)
    _fails(rig.exit(rig.launch(str(program))), 126, str(program), "not executable", "chmod +x")


def test_a_directory(rig: Rig, tmp_path: Path) -> None:
    _fails(rig.exit(rig.launch(str(tmp_path))), 126, str(tmp_path), "is a directory")


@pytest.mark.parametrize("content", [b"echo no shebang\n", b"", b"\x7fELF\x02\x01\x01 not really", b"\0\1\2\3"])
def test_a_wrong_format(rig: Rig, tmp_path: Path, content: bytes) -> None:
    program = _file(tmp_path / "program", content)
    _fails(rig.exit(rig.launch(str(program))), 126, str(program), "wrong format", "#!")


def test_a_missing_interpreter(rig: Rig, tmp_path: Path) -> None:
    program = _file(tmp_path / "script", "#!/no/such/interpreter\n")
    _fails(rig.exit(rig.launch(str(program))), 126, str(program), "interpreter")


def test_an_interpreter_that_is_not_executable(rig: Rig, tmp_path: Path) -> None:
    interpreter = _file(tmp_path / "interpreter", "", 0o644)
    program = _file(tmp_path / "script", f"#!{interpreter}\n")
    _fails(rig.exit(rig.launch(str(program))), 126, str(program), "interpreter")


def test_a_text_file_that_is_busy(rig: Rig, tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    with open(program, "r+b"):
        _fails(rig.exit(rig.launch(str(program))), 126, str(program), "text file busy", "open for writing")
    assert rig.exit(rig.launch(str(program))).value == 0


def test_a_loop_of_links_and_an_overlong_name(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    _fails(rig.exit(rig.launch(str(tmp_path / "loop"))), 126, os.strerror(errno.ELOOP))
    _fails(rig.exit(rig.launch("/" + "x" * 300)), 126, os.strerror(errno.ENAMETOOLONG))


def test_a_cwd_that_is_missing(rig: Rig, tmp_path: Path) -> None:
    cwd = tmp_path / "missing"
    _fails(rig.exit(rig.launch("/bin/true", cwd=cwd)), None, f"cwd {str(cwd)!r}", "does not exist")


def test_a_cwd_that_is_a_file(rig: Rig, tmp_path: Path) -> None:
    cwd = _file(tmp_path / "file", "")
    _fails(rig.exit(rig.launch("/bin/true", cwd=cwd)), None, f"cwd {str(cwd)!r}", "not a directory")


def test_a_cwd_that_is_a_loop(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    _fails(rig.exit(rig.launch("/bin/true", cwd=tmp_path / "loop")), None, "cwd", os.strerror(errno.ELOOP))


def test_one_argument_too_long_for_exec(rig: Rig) -> None:
    end = rig.exit(rig.launch("/bin/true", "x" * (1 << 18)))
    _fails(end, 126, "/bin/true", "too long", "E2BIG", "in a file")
    assert len(end.reason) < 1000


def test_arguments_and_environment_too_long_together(rig: Rig) -> None:
    environ = [b"V%d=%s" % (n, b"x" * 100_000) for n in range(100)]
    _fails(rig.exit(rig.launch("/bin/true", environ=environ)), 126, "/bin/true", "too long", "E2BIG")


def test_no_file_descriptor_left(rig: Rig) -> None:
    with rig.without_descriptors():
        end = rig.exit(rig.launch("/bin/true"))
    _fails(end, None, "log file", os.strerror(errno.EMFILE), "ulimit -n")


def test_a_log_directory_that_is_gone(rig: Rig) -> None:
    rig.logs.rmdir()
    end = rig.exit(rig.launch("/bin/true"))
    rig.logs.mkdir()
    _fails(end, None, "log file", os.strerror(errno.ENOENT), "Ray's log directory is gone")


def test_a_log_file_that_is_a_link_is_refused(rig: Rig, tmp_path: Path) -> None:
    precious = _file(tmp_path / "precious", "kept")
    rig.log(b"linked", "err").symlink_to(precious)
    _fails(rig.exit(rig.launch("/bin/true", token=b"linked")), None, "log file", os.strerror(errno.ELOOP))
    assert precious.read_text() == "kept"


def test_a_failed_launch_leaves_no_log_files(rig: Rig) -> None:
    token = rig.launch("/no/such/program")
    rig.exit(token)
    assert not rig.log(token, "out").exists()
    assert not rig.log(token, "err").exists()


def test_a_nul_byte_fails_the_launch_and_not_the_connection(rig: Rig) -> None:
    ends = [
        rig.exit(token)
        for token in (
            rig.launch(b"/bin/tr\0ue"),
            rig.launch("/bin/true", b"a\0b"),
            rig.launch("/bin/true", cwd=b"/\0"),
            rig.launch("/bin/true", environ=[b"A=\0"]),
        )
    ]
    assert [end.kind for end in ends] == ["failed"] * 4


# -- where a name is looked for ---------------------------------------------------------------------------------------


def _program(directory: Path, name: str, word: str) -> Path:
    directory.mkdir(exist_ok=True)
    return _file(directory / name, f"#!/bin/sh\necho {word}\n")


def test_a_name_is_looked_up_on_the_childs_own_path_in_order(rig: Rig, tmp_path: Path) -> None:
    _program(tmp_path / "a", "tool", "a")
    _program(tmp_path / "b", "tool", "b")
    token = rig.launch("tool", env={"PATH": f"{tmp_path}/none:{tmp_path}/b:{tmp_path}/a:/bin"})
    rig.exit(token)
    assert rig.words(token) == ["b"]


def test_a_name_that_is_on_no_path_is_not_found(rig: Rig) -> None:
    _fails(rig.exit(rig.launch("no-such-tool")), 127, "no-such-tool", "not found", "the child's PATH")


def test_the_value_of_path_is_not_told(rig: Rig) -> None:
    end = rig.exit(rig.launch("no-such-tool", env={"PATH": "/opt/secret"}))
    assert "secret" not in str(end.reason)


def test_an_empty_entry_of_path_is_the_cwd(rig: Rig, tmp_path: Path) -> None:
    _program(tmp_path, "tool", "here")
    for path in (":/nowhere", "/nowhere:", "/nowhere::/nowhere", ""):
        token = rig.launch("tool", cwd=tmp_path, env={"PATH": path})
        rig.exit(token)
        assert rig.words(token) == ["here"], path


def test_without_a_path_the_systems_default_is_searched(rig: Rig) -> None:
    assert rig.exit(rig.launch("true", unset=[b"PATH"])).value == 0


def test_what_cannot_run_does_not_hide_what_can(rig: Rig, tmp_path: Path) -> None:
    _program(tmp_path / "a", "tool", "a").chmod(0o644)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tool").mkdir()
    _program(tmp_path / "c", "tool", "c")
    token = rig.launch("tool", env={"PATH": f"{tmp_path}/a:{tmp_path}/b:{tmp_path}/c:/bin"})
    rig.exit(token)
    assert rig.words(token) == ["c"]


def test_when_nothing_on_path_can_run_the_first_that_was_found_is_named(rig: Rig, tmp_path: Path) -> None:
    found = _program(tmp_path / "a", "tool", "a")
    found.chmod(0o644)
    _fails(rig.exit(rig.launch("tool", env={"PATH": f"{tmp_path}/a"})), 126, "tool", str(found), "not executable")


def test_a_relative_program_is_relative_to_the_cwd(rig: Rig, tmp_path: Path) -> None:
    _program(tmp_path / "bin", "tool", "relative")
    token = rig.launch("bin/tool", cwd=tmp_path)
    rig.exit(token)
    assert rig.words(token) == ["relative"]
    end = rig.exit(rig.launch("./missing", cwd=tmp_path))
    _fails(end, 127, "./missing", "not found", f"relative to cwd {str(tmp_path)!r}")
    _program(tmp_path, "plain", "").chmod(0o644)
    _fails(rig.exit(rig.launch("./plain", cwd=tmp_path)), 126, "./plain", "not executable")


# -- no process left --------------------------------------------------------------------------------------------------


def test_no_process_left(tmp_path: Path) -> None:
    needs_root()  # it has no limit of processes, and another user's count is known
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    address = "\0" + f"node-test-{uuid.uuid4().hex}"  # abstract: nobody's permissions are in the way
    listener.bind(address)
    listener.listen()
    listener.setblocking(False)

    def supervise() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 50))
        Supervisor(listener, 0, Graces(60.0, 0.0, 0.0, 1.0), Fence()).run()

    def ask() -> str:
        wire = Wire(address)
        wire.send(b"launch", *Spec(token=b"poor", program=b"/bin/true", argv=[b"true"]).fields())
        first = wire.exit(b"poor")
        resource.prlimit(int(wire.verb(b"hello")[0]), resource.RLIMIT_NPROC, (50, 50))
        wire.send(b"launch", *Spec(token=b"rich", program=b"/bin/true", argv=[b"true"]).fields())
        return f"{first.kind} {first.value} {first.reason} / {wire.exit(b'rich').kind}"

    with listener, process_of(NOBODY, supervise):
        answer = answer_of(NOBODY, ask)
    assert answer.startswith(f"failed None cannot fork for '/bin/true': {os.strerror(errno.EAGAIN)}")
    assert "ulimit -u" in answer
    assert answer.endswith("/ exited")
