"""Looking, on the node of a proc, whether it is ready: see `ReadyWhen`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from ray_launcher.readiness import ReadyWhen

#: Seconds for which one call looks, and between two looks.
_PATIENCE = 2.0
_LOOK, _EXEC_LOOK = 0.05, 1.0
#: Seconds for somebody to take a connection, and for a program to end.
_CONNECT, _EXEC = 1.0, 10.0
_CHUNK = 1 << 20
#: Becomes the program; dies with the agent, whose pid is the first argument.
_MORTAL = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""

#: ended: the proc has, and is not ready.
Verdict: TypeAlias = Literal["ready", "not yet", "ended"]


class Subject(NamedTuple):
    """A proc, as its agent sees it. logs: its files.  address: Ray's, of the node.  lives: whether it still runs."""

    pid: int
    logs: Sequence[Path]
    address: str
    lives: Callable[[], bool]


async def probe(ready_when: ReadyWhen, subject: Subject, offsets: list[int]) -> tuple[Verdict, list[int]]:
    """Look for a while; returns also how far the logs have been read, by file, for the next time."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _PATIENCE
    while True:
        if not subject.lives():
            return "ended", offsets
        if ready_when.port is not None:
            ready = await _listens(ready_when.port, subject.address)
        elif ready_when.log is not None:
            ready, offsets = await loop.run_in_executor(None, _search, ready_when.log, subject.logs, offsets)
        else:
            ready = await _succeeds(ready_when.exec, subject)
        if ready:
            return "ready", offsets
        if loop.time() >= give_up:
            return "not yet", offsets
        await asyncio.sleep(_EXEC_LOOK if ready_when.exec else _LOOK)


async def _listens(port: int, address: str) -> bool:
    for host in dict.fromkeys(("127.0.0.1", "::1", address)):
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), _CONNECT)
            writer.close()
            return True
    return False


def _search(pattern: str, logs: Sequence[Path], offsets: Sequence[int]) -> tuple[bool, list[int]]:
    """Whether a whole line behind the offsets matches, and the offsets of what is not read yet."""
    matches = re.compile(pattern).search
    read = list(offsets)
    for index, path in enumerate(logs):
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(read[index])
            while data := file.read(_CHUNK):
                end = data.rfind(b"\n") + 1 or (len(data) if len(data) == _CHUNK else 0)
                if not end:
                    break
                if any(matches(line) for line in data[:end].decode("utf-8", "replace").split("\n")):
                    return True, read
                read[index] += end
                file.seek(read[index])
    return False, read


async def _succeeds(command: Sequence[str], subject: Subject) -> bool:
    try:
        place = Path(f"/proc/{subject.pid}")
        pairs = [pair.partition(b"=") for pair in (place / "environ").read_bytes().split(b"\0") if b"=" in pair]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _MORTAL, str(os.getpid()), *command),
            env={name: value for name, _, value in pairs},
            cwd=(place / "cwd").readlink(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:  # the proc is gone, or the node is short of something
        return False
    waiting = asyncio.ensure_future(process.wait())
    try:
        give_up = asyncio.get_running_loop().time() + _EXEC
        while not waiting.done() and subject.lives() and asyncio.get_running_loop().time() < give_up:
            await asyncio.wait([waiting], timeout=_LOOK)
        return waiting.done() and waiting.result() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await waiting
