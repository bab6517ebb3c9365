"""Hosts on one machine: each has its own network, processes, shared memory, temporary files, and can be cut off.

They share the file system, the clock and the machine's view of all processes: whoever is outside sees everything at
any moment, whatever the network does. See `hosts_keeper` for how they are made, and how they go whatever happens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import hosts_keeper
import pytest
from node_rig import until

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds after which a wait fails; the machine may be busy with other tests.
DEADLINE = 100.0
_COMMANDS = ("ip", "unshare", "nsenter")
#: Waits to be known, then becomes the command.
_WHEN_TOLD = ("sh", "-c", 'read -r _; exec "$0" "$@"')
_TUN = Path("/dev/net/tun")


def needs_hosts() -> None:
    """Skip where no hosts can be made."""
    missing = [name for name in _COMMANDS if shutil.which(name) is None]
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: iproute2, util-linux), to make network namespaces")
    if not os.access(_TUN, os.R_OK | os.W_OK):
        pytest.skip(f"needs {_TUN}, to connect network namespaces")


@dataclasses.dataclass(frozen=True)
class Host:
    """init: pid of its first process.  directory: for its temporary files."""

    name: str
    address: str
    init: int
    directory: Path

    def environ(self) -> dict[str, str]:
        """For what runs on it."""
        return {**os.environ, "TMPDIR": str(self.directory)}

    def processes(self) -> dict[int, str]:
        """Command line of everything that runs on it, by pid as seen from outside; without its init and zombies."""
        pids = (int(process.name) for process in Path("/proc").glob("[0-9]*"))
        commands = {pid: command_of(pid) for pid in pids if self.runs(pid)}
        return {pid: command for pid, command in commands.items() if command}

    def runs(self, pid: int) -> bool:
        """Whether that process is one of it."""
        return pid != self.init and _namespace(pid) == _namespace(self.init)


class Running:
    """A process on a host, started from outside. A context manager: leaving it kills the process."""

    def __init__(self, host: Host, command: tuple[str, ...], env: dict[str, str]) -> None:
        self._command, self._stderr = command, host.directory / "stderr"
        namespaces = ["nsenter", f"--target={host.init}", "--net", "--ipc", "--pid", "--mount"]
        with open(self._stderr, "ab") as stderr:
            self.process = subprocess.Popen(
                [*namespaces, *_WHEN_TOLD, *command],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        self.pid = until(self._child, "the process on the host", DEADLINE)
        self._pidfd = os.pidfd_open(self.pid)
        self.write("go\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def write(self, text: str) -> None:
        """To its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL to the process itself; the one that this process waits for only stands for it."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def finish(self) -> str:
        """What it writes until it ends, which must be with success."""
        output, _ = self.process.communicate(timeout=DEADLINE)
        assert self.process.returncode == 0, f"{self._command}: {output!r}; {self.last_words()}"
        return output.decode()

    def last_words(self) -> str:
        """The end of what has been written to stderr by all that was started on the host from outside."""
        return self._stderr.read_text()[-2000:]

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _child(self) -> int:
        assert self.process.poll() is None, f"nsenter has ended with status {self.process.returncode}"
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0


class Hosts:
    """Hosts in one network, in a directory of their own. A context manager: leaving it removes every trace of them."""

    def __init__(self, *names: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="n"))  # short: Ray makes sockets deep below
        addresses = [f"10.86.0.{number}" for number in range(1, 1 + len(names))]
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", hosts_keeper.__file__, str(self.directory), *addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        inits = json.loads(self._answer() or "[]")
        if len(inits) != len(names):
            self.close()
            raise RuntimeError("the hosts could not be made: see stderr")
        directories = [self.directory / name for name in names]
        self._hosts = dict(zip(names, map(Host, names, addresses, inits, directories), strict=True))
        for directory in directories:
            directory.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def close(self) -> None:
        """Return when no process, file or network of them is left."""
        with self._keeper as keeper:
            assert keeper.stdin is not None
            keeper.stdin.close()
            keeper.wait(DEADLINE)

    def lose(self, host: Host, *, sent: float = 0.0, received: float = 0.0, delay: float = 0.0) -> None:
        """Lose these parts of the packets that it sends and receives; the others are `delay` seconds late each way."""
        for direction, loss in (("from", sent), ("to", received)):
            assert self._keeper.stdin is not None
            self._keeper.stdin.write(json.dumps([host.address, direction, loss, delay]).encode() + b"\n")
            self._keeper.stdin.flush()
            assert self._answer() == "done"

    def cut(self, host: Host) -> None:
        """Nothing reaches it, and nothing that it sends arrives; nobody is told."""
        self.lose(host, sent=1.0, received=1.0)

    def heal(self, *hosts: Host) -> None:
        """Every packet arrives at once."""
        for host in hosts:
            self.lose(host)

    @contextlib.contextmanager
    def cut_off(self, host: Host) -> Iterator[None]:
        """For as long as this is open."""
        self.cut(host)
        try:
            yield
        finally:
            self.heal(host)

    def start(self, host: Host, *command: str) -> Running:
        """Start a command on the host."""
        return Running(host, command, self.environ(host))

    def run(self, host: Host, *command: str) -> str:
        """Run a command on the host; see `Running.finish`."""
        with self.start(host, *command) as running:
            return running.finish()

    def environ(self, host: Host) -> dict[str, str]:
        return host.environ()

    def _answer(self) -> str:
        assert self._keeper.stdout is not None
        return self._keeper.stdout.readline().decode().strip()


def _namespace(pid: int) -> Path | None:
    """The namespace of processes that it is in; None for what has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/ns/pid").readlink()
    return None


def command_of(pid: int) -> str:
    """Its command line; "" for what has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""
