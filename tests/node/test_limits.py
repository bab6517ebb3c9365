"""What a launch asks for its process is what the program finds; the supervisor and the others keep what they had."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from pathlib import Path

import pytest
from node_rig import Exit, Rig, stat, until
from other_user import NOBODY, answer_of, needs_root

from ray_launcher.node.binding import LimitError, numbers, ranges, wanted_cpus
from ray_launcher.node.forked import start
from ray_launcher.node.limits import Limits

_NODES = Path("/sys/devices/system/node")
_STATE = (
    "import os, resource; print(sorted(os.sched_getaffinity(0)), oct(os.umask(0)), os.getpriority(0, 0),"
    "resource.getrlimit(resource.RLIMIT_NOFILE), *{line.split()[1] for line in open('/proc/self/numa_maps')})"
)
_EVERYTHING = Limits(bind={"cpus": "0"}, rlimits={"nofile": (100, 200)}, umask=0o27, nice=5)


def _state(rig: Rig, limits: Limits | None = None) -> str:
    """What a program says of its own CPUs, memory, umask, niceness and limit of files."""
    token = rig.python(_STATE, limits=limits)
    assert rig.exit(token).value == 0
    return rig.words(token)[0]


def _fails(end: Exit, *words: str) -> None:
    assert (end.kind, end.value, end.tail) == ("failed", None, [])
    assert all(word in end.reason for word in words), end.reason


# -- what the program finds -------------------------------------------------------------------------------------------


def test_a_program_runs_on_the_cpus_that_were_asked_for(rig: Rig) -> None:
    for cpu in sorted(os.sched_getaffinity(0))[:2]:
        for name in ("cpus", "physcpubind"):
            token = rig.launch(
                "/bin/grep", "Cpus_allowed_list", "/proc/self/status", limits=Limits(bind={name: str(cpu)})
            )
            assert rig.exit(token).value == 0
            assert rig.words(token) == [f"Cpus_allowed_list:\t{cpu}"]


def test_rlimits_are_soft_and_hard_and_may_be_unlimited(rig: Rig) -> None:
    limits = Limits(rlimits={"nofile": (100, 200), "core": (0, -1), "stack": (-1, -1)})
    token = rig.launch("/bin/cat", "/proc/self/limits", limits=limits)
    assert rig.exit(token).value == 0
    found = {line[:25].strip(): line[25:].split()[:2] for line in rig.output(token).decode().splitlines()}
    assert found["Max open files"] == ["100", "200"]
    assert found["Max core file size"] == ["0", "unlimited"]
    assert found["Max stack size"] == ["unlimited", "unlimited"]


def test_umask_and_niceness_are_those_that_were_asked_for(rig: Rig) -> None:
    token = rig.sh("umask; nice", limits=Limits(umask=0o27, nice=5))
    assert rig.exit(token).value == 0
    assert rig.words(token, 2) == ["0027", "5"]


def test_a_umask_of_nothing_and_a_niceness_of_zero_are_asked_for_too(rig: Rig) -> None:
    token = rig.sh("umask; nice", limits=Limits(umask=0, nice=0))
    assert rig.exit(token).value == 0
    assert rig.words(token, 2) == ["0000", "0"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for less than the usual niceness")
def test_with_the_privilege_a_program_may_be_less_nice_than_the_supervisor(rig: Rig) -> None:
    token = rig.sh("nice", limits=Limits(nice=-5))
    assert rig.exit(token).value == 0
    assert rig.words(token) == ["-5"]


def test_limits_are_one_launchs_and_no_others(rig: Rig) -> None:
    before = _state(rig)
    assert _state(rig, _EVERYTHING) != before
    assert _state(rig) == before


@pytest.mark.parametrize("limits", [_EVERYTHING, Limits(umask=0)])
def test_within_limits_a_program_starts_as_clean_as_without(rig: Rig, limits: Limits) -> None:
    command = ("-c", "ls /proc/self/fd; cat; pwd; tr '\\0' ' ' </proc/$$/cmdline; env | sort")
    said = []
    for each in (None, limits):
        status = rig.launch("/bin/grep", "-E", "^(Sig[^Q]|Shd)", "/proc/self/status", limits=each)
        shell = rig.launch("/bin/sh", *command, argv0="-odd", cwd="/usr", inherit=False, limits=each)
        assert [rig.exit(token).value for token in (status, shell)] == [0, 0]
        said.append(rig.output(status) + rig.output(shell).partition(b"RAY_LAUNCHER_ID=")[0])
    assert said[0] == said[1]
    assert b"SigBlk:\t0000000000000000\n" in said[0]


def test_within_limits_the_leader_leads_its_own_session_as_the_supervisors_child(rig: Rig) -> None:
    token = rig.sh("echo $$; exec sleep 9999", limits=_EVERYTHING)
    (pid,) = rig.pids(token)
    _state, parent, group, session, terminal = stat(pid)[:5]
    assert (int(parent), int(group), int(session), int(terminal)) == (rig.pid, pid, pid, 0)
    rig.wire.send(b"terminate", token, b"9999")
    assert rig.exit(token).value == signal.SIGTERM


def test_a_tree_within_limits_is_killed_as_any_other(rig: Rig) -> None:
    token = rig.sh("setsid sleep 9999 & echo $$; echo $!; trap '' TERM; wait", limits=_EVERYTHING)
    pids = rig.pids(token, 2)
    rig.wire.send(b"kill", token)
    assert rig.exit(token).value == signal.SIGKILL
    rig.gone(*pids)


def test_limits_too_low_for_the_supervisor_are_the_programs_alone(rig: Rig) -> None:
    """Memory for no thread, no descriptor, no process: the program has to see to it, and the launch works."""
    for name, value in (("nofile", 0), ("nproc", 0), ("fsize", 0), ("data", 0), ("as", 1 << 20), ("rttime", 0)):
        end = rig.exit(rig.launch("/bin/true", limits=Limits(rlimits={name: (value, value)})))
        assert end.kind in ("exited", "signaled"), (name, end)
    assert rig.exit(rig.sh("exit 3")).value == 3


# -- what cannot be had -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpus", "physcpubind"])
def test_a_cpu_that_is_not_there_is_named_with_those_that_are(rig: Rig, name: str) -> None:
    end = rig.exit(rig.launch("/bin/true", limits=Limits(bind={name: "0,4095"})))
    _fails(end, f"ProcBind.{name}='0,4095'", "no CPU 4095", f"may use {ranges(os.sched_getaffinity(0))}")


@pytest.mark.parametrize("name", ["cpunodebind", "membind"])
@pytest.mark.skipif(not _NODES.is_dir(), reason="the kernel tells of no NUMA nodes")
def test_a_numa_node_that_is_not_there_is_named_with_those_that_are(rig: Rig, name: str) -> None:
    end = rig.exit(rig.launch("/bin/true", limits=Limits(bind={name: "0,999"})))
    _fails(end, f"ProcBind.{name}='0,999'", "no NUMA node 999", f"there are {(_NODES / 'online').read_text().strip()}")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_lists_that_have_no_cpu_in_common_are_named(rig: Rig) -> None:
    first, second, *_ = map(str, sorted(os.sched_getaffinity(0)))
    end = rig.exit(rig.launch("/bin/true", limits=Limits(bind={"cpus": first, "physcpubind": second})))
    _fails(end, f"ProcBind.cpus='{first}'", f"ProcBind.physcpubind='{second}'", "overlap")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_cpu_that_the_supervisor_may_not_use_is_not_there(rig: Rig) -> None:
    first, second, *_ = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(rig.pid, {first})
    _fails(rig.exit(rig.launch("/bin/true", limits=Limits(bind={"cpus": str(second)}))), f"no CPU {second}")


def test_an_rlimit_above_the_hard_one_is_named_with_it(rig: Rig) -> None:
    """No privilege allows so many files (fs.nr_open)."""
    end = rig.exit(rig.launch("/bin/true", limits=Limits(rlimits={"core": (0, 0), "nofile": (1, 1 << 40)})))
    hard = resource.prlimit(rig.pid, resource.RLIMIT_NOFILE)[1]
    _fails(end, f"LaunchOptions.rlimits['nofile']=1:{1 << 40}", f"the hard limit is {hard} here", "fs.nr_open")


def test_a_niceness_that_takes_a_privilege_is_refused_without(tmp_path: Path) -> None:
    needs_root()
    limits = Limits(nice=-5)

    def ask() -> str:
        try:
            start(b"/bin/true", [b"true"], {}, (1, 1, 1), limits)
        except LimitError as error:
            return str(error)
        return "it was started"

    answer = answer_of(NOBODY, ask)
    assert answer.startswith(f"LaunchOptions.nice=-5: Permission denied: procs start at {os.nice(0)} here")
    assert "CAP_SYS_NICE" in answer


def test_a_missing_program_is_missing_within_limits_too(rig: Rig) -> None:
    for program, code in (("/no/such/program", 127), ("no-such-tool", 127), ("/etc", 126), ("/etc/passwd", 126)):
        ends = [rig.exit(rig.launch(program, limits=limits)) for limits in (None, _EVERYTHING)]
        assert ends[0].value == code
        assert ends[0][2:] == ends[1][2:]


def test_arguments_too_long_for_exec_are_so_within_limits_too(rig: Rig) -> None:
    ends = [rig.exit(rig.launch("/bin/true", "x" * (1 << 18), limits=limits)) for limits in (None, _EVERYTHING)]
    assert ends[0].value == 126
    assert ends[0][2:] == ends[1][2:]


def test_a_failure_within_limits_leaves_no_process_and_no_descriptor(rig: Rig) -> None:
    descriptors = Path(f"/proc/{rig.pid}/fd")
    rig.wire.barrier()
    before = {path.name for path in descriptors.iterdir()}
    rig.exit(rig.launch("/no/such/program", limits=_EVERYTHING))
    rig.exit(rig.launch("/etc/passwd", limits=_EVERYTHING))
    rig.exit(rig.launch("/bin/true", limits=Limits(bind={"cpus": "4095"})))
    until(lambda: {path.name for path in descriptors.iterdir()} == before, f"its descriptors are {before} again")
    rig.none_left()


def test_without_descriptors_the_failure_says_so(rig: Rig) -> None:
    with rig.without_descriptors():
        end = rig.exit(rig.launch("/bin/true", stdio=False, limits=_EVERYTHING))
    _fails(end, "cannot fork", os.strerror(24), "ulimit -n")


# -- memory and NUMA nodes --------------------------------------------------------------------------------------------


def _tree(root: Path, **lists: str) -> str:
    """NUMA nodes as /sys tells of them."""
    for number, cpus in enumerate(lists.values()):
        (root / f"node{number}").mkdir()
        (root / f"node{number}" / "cpulist").write_text(cpus + "\n")
    (root / "online").write_text(f"0-{len(lists) - 1}\n")
    return str(root)


@pytest.fixture
def two_nodes(tmp_path: Path) -> str:
    return _tree(tmp_path, first="0-3,8-11", second="4-7")


def test_a_numa_nodes_cpus_are_those_that_the_kernel_lists(two_nodes: str) -> None:
    usable = set(range(12))
    assert wanted_cpus({"cpunodebind": "0"}, usable, two_nodes) == {0, 1, 2, 3, 8, 9, 10, 11}
    assert wanted_cpus({"cpunodebind": "0-1"}, usable, two_nodes) == usable


def test_of_several_lists_those_cpus_count_that_are_in_all(two_nodes: str) -> None:
    wanted = {"cpunodebind": "0", "physcpubind": "2-5", "cpus": "3,4"}
    assert wanted_cpus(wanted, set(range(12)), two_nodes) == {3}
    assert wanted_cpus({"membind": "0"}, {0}, two_nodes) == set()


def test_of_a_numa_node_those_cpus_count_that_may_be_used(two_nodes: str) -> None:
    assert wanted_cpus({"cpunodebind": "0"}, {3, 4}, two_nodes) == {3}
    with pytest.raises(LimitError, match="none of which is on these NUMA nodes"):
        wanted_cpus({"cpunodebind": "0"}, {4}, two_nodes)


def test_a_machine_without_numa_says_so(tmp_path: Path) -> None:
    with pytest.raises(LimitError, match=r"ProcBind\.cpunodebind='0': this machine tells of no NUMA nodes"):
        wanted_cpus({"cpunodebind": "0"}, {0}, str(tmp_path / "none"))


@pytest.mark.parametrize("listed, found", [("0", {0}), ("0-3,8", {0, 1, 2, 3, 8}), ("5-5,1", {1, 5}), ("07", {7})])
def test_a_list_of_numbers_is_read_and_shown(listed: str, found: set[int]) -> None:
    assert numbers(listed) == found
    assert numbers(ranges(found)) == found


def _has_policies() -> bool:
    """Whether the kernel knows set_mempolicy; asked in a way that changes nothing."""
    return bool(ctypes.CDLL(None).syscall(239, None, None, ctypes.c_ulong(0), None, ctypes.c_ulong(0)) == 0)


@pytest.mark.skipif(os.uname().machine != "x86_64" or not _has_policies(), reason="needs memory policies")
def test_memory_is_bound_to_the_nodes_that_were_asked_for(rig: Rig) -> None:
    token = rig.launch("/bin/cat", "/proc/self/numa_maps", limits=Limits(bind={"membind": "0"}))
    assert rig.exit(token).value == 0
    assert {line.split()[1] for line in rig.output(token).splitlines()} == {b"bind:0"}


@pytest.mark.skipif(not (_NODES / "node0").is_dir(), reason="the kernel tells of no NUMA nodes")
def test_a_program_runs_on_the_cpus_of_a_numa_node(rig: Rig) -> None:
    cpus = numbers((_NODES / "node0" / "cpulist").read_text().strip()) & os.sched_getaffinity(0)
    token = rig.launch("/bin/grep", "Cpus_allowed_list", "/proc/self/status", limits=Limits(bind={"cpunodebind": "0"}))
    assert rig.exit(token).value == 0
    assert rig.words(token) == [f"Cpus_allowed_list:\t{ranges(cpus)}"]
