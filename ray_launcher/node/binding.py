"""CPUs and memory nodes: which ones a launch asks for, and the system calls that bind the calling process to them.

A process that is forked for a launch is the only caller. Everything that is asked for is looked up on the machine
first: the kernel would leave out, without a word, what there is not.
"""

from __future__ import annotations

import ctypes
import errno
import os

#: Where the kernel tells of NUMA nodes (Documentation/ABI/stable/sysfs-devices-node).
_NODES = "/sys/devices/system/node"
#: The number of set_mempolicy(2), for which the C library has no function.
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237, "riscv64": 237, "ppc64le": 261, "s390x": 270}
_MPOL_BIND = 2


class LimitError(Exception):
    """A limit or a binding cannot be had; the text names the argument and what the node has."""


def bind(wanted: dict[str, str]) -> None:
    """Bind this process, and so what it is about to exec, to lists by the names of `BINDINGS`. Raises `LimitError`."""
    cpus = wanted_cpus(wanted, os.sched_getaffinity(0))
    if cpus:
        os.sched_setaffinity(0, cpus)
    if "membind" in wanted:
        _bind_memory(wanted["membind"])


def wanted_cpus(wanted: dict[str, str], usable: set[int], nodes: str = _NODES) -> set[int]:
    """Those in all lists of CPUs, all of which must be `usable`; empty where no list is given. Raises `LimitError`."""
    lists: list[set[int]] = []
    for key in ("physcpubind", "cpus"):
        if key in wanted:
            lists.append(numbers(wanted[key]))
            if missing := lists[-1] - usable:
                raise LimitError(
                    f"{_named(key, wanted)}: no CPU {ranges(missing)} here, procs may use {ranges(usable)}"
                )
    if "cpunodebind" in wanted:
        lists.append(_cpus_of_nodes(wanted, nodes) & usable)
        if not lists[-1]:
            text = f"procs may use the CPUs {ranges(usable)} here, none of which is on these NUMA nodes"
            raise LimitError(f"{_named('cpunodebind', wanted)}: {text}")
    if not lists:
        return set()
    cpus = set.intersection(*lists)
    if not cpus:
        named = ", ".join(_named(key, wanted) for key in wanted if key != "membind")
        raise LimitError(f"no CPU is in all of {named}: let the lists overlap, or give one")
    return cpus


def _cpus_of_nodes(wanted: dict[str, str], nodes: str) -> set[int]:
    _check_nodes("cpunodebind", wanted, _numbers_in(f"{nodes}/online"))
    found = [_numbers_in(f"{nodes}/node{number}/cpulist") for number in numbers(wanted["cpunodebind"])]
    return set().union(*found)


def _check_nodes(key: str, wanted: dict[str, str], there: set[int]) -> None:
    if not there:
        raise LimitError(f"{_named(key, wanted)}: this machine tells of no NUMA nodes ({_NODES}): leave it out")
    if missing := numbers(wanted[key]) - there:
        raise LimitError(f"{_named(key, wanted)}: no NUMA node {ranges(missing)} here, there are {ranges(there)}")


def _bind_memory(listed: str) -> None:
    wanted = {"membind": listed}
    there = _numbers_in(f"{_NODES}/has_memory")
    _check_nodes("membind", wanted, there & _allowed_memory() if there else there)
    call = _SET_MEMPOLICY.get(os.uname().machine)
    if call is None:
        raise LimitError(
            f"{_named('membind', wanted)}: not known for this machine ({os.uname().machine}): leave it out"
        )
    code = _set_mempolicy(call, numbers(listed))
    if code:
        hint = ": a container needs CAP_SYS_NICE for it" if code == errno.EPERM else ""
        raise LimitError(f"{_named('membind', wanted)}: set_mempolicy: {os.strerror(code)}{hint}")


def _set_mempolicy(call: int, nodes: set[int]) -> int:
    """The errno, or 0."""
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (max(nodes) // bits + 1))()
    for node in nodes:
        mask[node // bits] |= 1 << node % bits
    size = ctypes.c_ulong(bits * len(mask) + 1)  # the kernel takes one bit less than it is told
    done = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(call), ctypes.c_int(_MPOL_BIND), mask, size)
    return ctypes.get_errno() if done else 0


def _allowed_memory() -> set[int]:
    with open("/proc/self/status", "rb") as file:
        lines = [line for line in file if line.startswith(b"Mems_allowed_list:")]
    return numbers(lines[0].split()[1].decode()) if lines else set()


def _numbers_in(path: str) -> set[int]:
    try:
        with open(path, "rb") as file:
            listed = file.read().decode().strip()
    except OSError:
        return set()
    return numbers(listed) if listed else set()  # a node may be without CPUs


def numbers(listed: str) -> set[int]:
    """The numbers of a list such as ``0-3,8``."""
    found: set[int] = set()
    for part in listed.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def ranges(found: set[int]) -> str:
    """The shortest list of these numbers: ``0-3,8``."""
    parts: list[list[int]] = []
    for number in sorted(found):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def _named(key: str, wanted: dict[str, str]) -> str:
    return f"ProcBind.{key}={wanted[key]!r}"
