"""Sessions whose drivers run on hosts, their procs, and when these end: seen from outside, by one clock."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import remote_driver
from hosts import DEADLINE, Host
from node_rig import marked, until
from ray_hosts import RayHosts

if TYPE_CHECKING:
    from typing_extensions import Self

#: Milliseconds between looks at whether a watch is over.
_LOOK = 50
#: What the procs do. All note the moment of their start, and "up" from each process, in the file argv[1].
_NOTES = """
import os, signal, sys, time
def note(word):
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{word}\\n".encode())
    os.close(file)
note("start")
"""
#: A leader with a child, and one that has escaped into a session of its own; all ignore TERM.
TREE = f"""{_NOTES}
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
elif os.fork():
    pass
note("up")
time.sleep(9999)
"""
TREE_SIZE = 3
#: Exits with the status that is in the file argv[1].exit, as soon as that is there.
WORKER = f"""{_NOTES}
note("up")
while not os.path.exists(sys.argv[1] + ".exit"):
    time.sleep(0.01)
sys.exit(int(open(sys.argv[1] + ".exit").read()))
"""


@dataclasses.dataclass(frozen=True)
class Exit:
    """What one port said. at: when, by the monotonic clock.  reason: of `Failed`."""

    proc_id: str
    at: float
    text: str
    returncode: int | None
    reason: str | None


@dataclasses.dataclass(frozen=True)
class Proc:
    """One proc on a host, seen from outside."""

    proc_id: str
    host: Host
    node_id: str
    notes: Path
    size: int

    def is_up(self) -> bool:
        """Whether all of its processes run."""
        return self.noted().count("up") == self.size == len(self.pids())

    def noted(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return self.notes.read_text().split()
        return []

    def pids(self) -> set[int]:
        """Of its living processes."""
        return set(marked(str(self.notes)))

    def exit(self, status: int) -> None:
        """Have a WORKER exit, whatever the network does."""
        draft = self.notes.with_suffix(".draft")
        draft.write_text(str(status))
        draft.rename(f"{self.notes}.exit")


class Session:
    """A session with its driver on `host`. A context manager: leaving it kills the driver.

    exits: what the ports have said, in the order in which the driver saw it.
    """

    def __init__(self, hosts: RayHosts, host: Host, **settings: float) -> None:
        self._hosts = hosts
        self.exits: list[Exit] = []
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._asking = threading.Lock()
        command = [sys.executable, remote_driver.__file__, hosts.address, json.dumps({"grace": 1.0, **settings})]
        self._driver = hosts.start(host, *command)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.name: str = self.ask("session")
            self._notes = hosts.directory / "notes" / self.name
            self._notes.mkdir(parents=True)
            self._nodes: dict[str, str] = self.ask("nodes")
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()

    def ask(self, verb: str, *arguments: object) -> Any:
        """What the driver answers, see `remote_driver.Verbs`."""
        self._driver.write(json.dumps([verb, *arguments]) + "\n")
        answer = self._answers.get(timeout=DEADLINE)
        assert "answer" in answer, f"{verb}: {answer}; {self._driver.last_words()}"
        return answer["answer"]

    def launch(self, proc_id: str, host: Host, script: str) -> Proc:
        """Request a proc on the node that the host was when the session began."""
        node_id = self._nodes[host.address]
        notes = self._notes / proc_id.replace(" ", "-")
        self.ask("launch", proc_id, node_id, sys.executable, ["-I", "-S", "-c", script, str(notes)])
        return Proc(proc_id, host, node_id, notes, TREE_SIZE if script == TREE else 1)

    def start(self, proc_id: str, host: Host, script: str) -> Proc:
        """A proc that is up."""
        [proc] = self.start_on([host], script, proc_id)
        return proc

    def start_on(self, hosts: Iterable[Host], script: str, proc_id: str = "on {}") -> list[Proc]:
        """Procs that are up, one on each host, with its name in the id; their agents start at the same time."""
        procs = [self.launch(proc_id.format(host.name), host, script) for host in hosts]
        for proc in procs:
            until(lambda proc=proc: proc.is_up() or self.exits_of(proc), f"{proc.proc_id} is up", DEADLINE)  # type: ignore[misc]
            assert not self.exits_of(proc)
        return procs

    def exits_of(self, proc: Proc) -> list[Exit]:
        return [exit_ for exit_ in self.exits if exit_.proc_id == proc.proc_id]

    def ended(self, proc: Proc) -> Exit:
        """What its port says, once it does."""
        return until(lambda: self.exits_of(proc), f"the port of {proc.proc_id} resolves", DEADLINE)[0]

    def close(self) -> None:
        """End the session in the orderly way."""
        self.ask("close", 0.0)

    def kill(self) -> None:
        """SIGKILL to the driver; returns when it is gone."""
        self._driver.kill()
        self._reader.join(DEADLINE)
        self._driver.close()

    def procs(self) -> dict[int, str]:
        """Its living procs, on all hosts, by pid."""
        return marked(f"RAY_LAUNCHER_ID={self.name}/")

    def helpers(self) -> dict[int, str]:
        """Its supervisors and guards, on all hosts, by pid."""
        found = marked(f"/{self.name}-")
        return {pid: command for pid, command in found.items() if "node/main.py" in command}

    def _read(self) -> None:
        assert self._driver.process.stdout is not None
        for line in self._driver.process.stdout:
            news = json.loads(line)
            if "exit" in news:
                self.exits.append(Exit(**news["exit"]))
            else:
                self._answers.put(news)
        self._answers.put({"error": "the driver has ended"})


class Deaths:
    """When processes end, by the monotonic clock. Each is waited for: a moment may be noted late, and never early.

    A context manager: leaving it ends the watch.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self.moments: dict[int, float] = {}
        self._pidfds = {os.pidfd_open(pid): pid for pid in pids}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def last(self) -> float | None:
        """The moment when all had ended; None while one lives."""
        return max(self.moments.values()) if len(self.moments) == len(self._pidfds) else None

    def wait(self) -> float:
        """The moment when all had ended, once they have."""
        until(lambda: self.last() is not None, "the processes have ended", DEADLINE)
        return max(self.moments.values())

    def _watch(self) -> None:
        poll = select.poll()
        for pidfd in self._pidfds:
            poll.register(pidfd, select.POLLIN)
        while not self._over.is_set():
            for pidfd, _ in poll.poll(_LOOK):
                self.moments[self._pidfds[pidfd]] = time.monotonic()
                poll.unregister(pidfd)
        for pidfd in self._pidfds:
            os.close(pidfd)
