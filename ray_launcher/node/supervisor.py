"""The supervisor: the small process that owns a node's procs. Standard library only, one thread, no Ray.

Its node agent starts it (through `node.main`) and talks to it over a Unix socket; it forks, reaps, reads tails and
kills. It outlives its agent: exit reports are kept until acknowledged, and a new agent that connects is told what
runs. It ends its procs and itself when told to, when no agent has been there for the orphan grace, or as soon as
the raylet has gone. It may import nothing heavy: its size is the price of every fork.

Verbs, agent to supervisor: hello, base *NAME=VALUE, launch SPEC, terminate TOKEN SECONDS, kill TOKEN,
signal TOKEN SIGNUM, ack SEQ, stop SECONDS. Supervisor to agent: hello PID *(TOKEN PID STARTED), started *(TOKEN PID
STARTED), exit SEQ TOKEN KIND VALUE CORE TIME *TAIL, note TEXT, bye.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time

from ray_launcher.node import process
from ray_launcher.node.failures import explain
from ray_launcher.node.logfiles import LogFiles
from ray_launcher.node.procs import KILL_BOUND, Proc, Procs
from ray_launcher.node.process import SetupError, Starter
from ray_launcher.node.protocol import FrameReader, ProtocolError, pack
from ray_launcher.node.spec import Spec
from ray_launcher.node.tail import read_tail
from ray_launcher.node.timers import Timer, Timers

#: Bytes of unacknowledged reports beyond which new ones go without their stderr tail.
REPORT_BYTES = 64 << 20
#: Commands taken from the socket between two looks at exits and timers.
_BURST = 8
#: Seconds within which the agent learns that a proc has started.
_ANNOUNCE = 0.02


class Peer:
    """One connection: an agent once it has said hello, a stranger before."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = FrameReader()
        self.inbox: list[list[bytes]] = []
        self.outbox = bytearray()

    def flush(self) -> None:
        """Write what the socket takes. Raises OSError when the peer is gone."""
        try:
            while self.outbox:
                del self.outbox[: self.sock.send(self.outbox)]
        except BlockingIOError:
            pass


class Supervisor:
    """Serves one listening socket until it is stopped, orphaned, or its raylet is gone."""

    def __init__(self, listener: socket.socket, raylet: int, orphan_grace: float, end_grace: float) -> None:
        process.become_subreaper()
        self._listener = listener
        self._orphan_grace = orphan_grace
        self._end_grace = end_grace
        self._timers = Timers()
        self._procs = Procs(self._timers, self._unkillable)
        self._files = LogFiles()
        self._starter = Starter(self._files)
        self._base: dict[bytes, bytes] = {}
        self._reports: dict[int, bytes] = {}  # by sequence number, until acknowledged
        self._report_bytes = 0
        self._sequence = 0
        self._peers: dict[int, Peer] = {}
        self._agent: Peer | None = None
        self._orphaned: Timer | None = None
        self._unannounced: list[Proc] = []
        self._stopping = False
        self._stop_by = float("inf")
        self._epoll = select.epoll()
        self._wakeup, wakeup_in = os.pipe()
        for fd in (self._wakeup, wakeup_in):
            os.set_blocking(fd, False)
        process.own_signals(self._on_signal, signal.SIGCHLD, signal.SIGTERM)
        signal.set_wakeup_fd(wakeup_in, warn_on_full_buffer=False)
        self._raylet = _open_pid(raylet)
        for fd in (self._wakeup, self._listener.fileno(), self._raylet):
            if fd >= 0:
                self._epoll.register(fd, select.EPOLLIN)
        self._agent_left()

    def run(self) -> None:
        """Serve until the end; afterwards none of the procs is left, save what the kernel cannot kill."""
        while not (self._stopping and self._finished()):
            busy = any(peer.inbox for peer in self._peers.values())
            for fd, events in self._epoll.poll(0 if busy else self._timers.wait()):
                self._ready(fd, events)
            self._reap()
            for peer in list(self._peers.values()):
                self._serve(peer)
            self._timers.fire()
            for peer in list(self._peers.values()):
                self._flush(peer)
        self._say_bye()

    # -- events ---------------------------------------------------------------------------------------------------

    def _ready(self, fd: int, events: int) -> None:
        if fd == self._wakeup:
            os.read(fd, 1 << 12)
        elif fd == self._listener.fileno():
            self._accept()
        elif fd == self._raylet:
            self._epoll.unregister(fd)
            self._stop(min(self._end_grace, 2.0))
        elif fd in self._peers and events & ~select.EPOLLOUT:
            self._receive(self._peers[fd])

    def _on_signal(self, signum: int, _frame: object) -> None:
        if signum == signal.SIGTERM:
            self._stop(self._end_grace)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # out of file descriptors, or the peer has gone again
            return
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            sock.close()
            return
        sock.setblocking(False)
        self._peers[sock.fileno()] = Peer(sock)
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _receive(self, peer: Peer) -> None:
        try:
            data = peer.sock.recv(1 << 18)
            if not data:
                raise ConnectionError("closed by the peer")
            peer.inbox += peer.reader.feed(data)
        except BlockingIOError:
            pass
        except (OSError, ProtocolError):
            self._drop(peer)

    def _serve(self, peer: Peer) -> None:
        batch, peer.inbox = peer.inbox[:_BURST], peer.inbox[_BURST:]
        try:
            for verb, *fields in batch:
                self._command(peer, verb, fields)
        except (ProtocolError, ValueError, OverflowError):  # garbage: the peer goes, the procs stay
            self._drop(peer)

    def _flush(self, peer: Peer) -> None:
        try:
            peer.flush()
        except OSError:
            self._drop(peer)
        else:
            wanted = select.EPOLLIN | (select.EPOLLOUT if peer.outbox else 0)
            self._epoll.modify(peer.sock.fileno(), wanted)

    def _drop(self, peer: Peer) -> None:
        if self._peers.pop(peer.sock.fileno(), None) is None:
            return
        self._epoll.unregister(peer.sock.fileno())
        peer.sock.close()
        if peer is self._agent:
            self._agent = None
            self._agent_left()

    def _agent_left(self) -> None:
        self._orphaned = self._timers.after(self._orphan_grace, lambda: self._stop(self._end_grace))

    # -- commands -------------------------------------------------------------------------------------------------

    def _command(self, peer: Peer, verb: bytes, fields: list[bytes]) -> None:
        if verb == b"hello":
            self._hello(peer)
        elif peer is not self._agent:
            raise ProtocolError("a command before hello")
        elif verb == b"launch":
            self._launch(Spec.from_fields(fields))
        elif verb == b"base":
            self._base = dict(_pair(item) for item in fields)
        elif verb == b"ack":
            self._acknowledge(int(_one(fields)))
        elif verb == b"stop":
            self._stop(_seconds(_one(fields)))
        else:
            self._request(verb, fields)

    def _request(self, verb: bytes, fields: list[bytes]) -> None:
        """terminate, kill, signal. For a token that does not run: nothing, by contract."""
        token, *values = fields or [b""]
        proc = self._procs.by_token.get(token)
        if verb == b"terminate":
            timeout = _seconds(_one(values))
            if proc is not None:
                self._procs.terminate(proc, timeout)
        elif verb == b"signal":
            signum = int(_one(values))
            if not 0 < signum < signal.NSIG:
                raise ProtocolError("no such signal")
            if proc is not None:
                self._procs.signal(proc, signum)
        elif verb == b"kill":
            if proc is not None:
                self._procs.kill(proc)
        else:
            raise ProtocolError("an unknown verb")

    def _hello(self, peer: Peer) -> None:
        """A new agent takes over from the one before: what runs, and every report that nobody acknowledged."""
        previous, self._agent = self._agent, peer
        if previous is not None and previous is not peer:
            self._drop(previous)
        if self._orphaned is not None:
            self._orphaned.cancel()
        running = [field for proc in self._procs.by_token.values() for field in _facts(proc)]
        self._tell(b"hello", b"%d" % os.getpid(), *running)
        for report in self._reports.values():
            peer.outbox += report

    def _launch(self, spec: Spec) -> None:
        if spec.token in self._procs.by_token:
            return  # sent again by an agent that did not see our answer
        if self._stopping:
            self._report(spec.token, b"failed", b"the node's supervisor is ending", None, 0, [])
            return
        env = spec.environment(self._base)
        try:
            proc = self._procs.add(spec, self._starter.start(spec, env))
        except SetupError as error:
            reason, code = explain(error, spec, env)
            self._report(spec.token, b"failed", os.fsencode(reason), code, 0, [])
            self._done_with(spec)
        else:
            self._announce(proc)

    def _announce(self, proc: Proc) -> None:
        """Tell of it a little later, together with others: of a proc that is gone by then, its exit says all."""
        if not self._unannounced:
            self._timers.after(_ANNOUNCE, self._announce_all)
        self._unannounced.append(proc)

    def _announce_all(self) -> None:
        alive = [field for proc in self._unannounced if not proc.exited for field in _facts(proc)]
        self._unannounced = []
        if alive:
            self._tell(b"started", *alive)

    def _acknowledge(self, sequence: int) -> None:
        for done in [number for number in self._reports if number <= sequence]:
            self._report_bytes -= len(self._reports.pop(done))

    # -- exits ----------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for proc, status in self._procs.reap():
            spec = proc.spec
            if proc.unkillable:  # its port has been told already
                continue
            tail = read_tail(spec.stderr, spec.tail_lines) if spec.stderr else []
            if os.WIFSIGNALED(status):
                self._report(spec.token, b"signaled", b"", os.WTERMSIG(status), os.WCOREDUMP(status), tail)
            else:
                self._report(spec.token, b"exited", b"", os.WEXITSTATUS(status), 0, tail)
            self._done_with(spec)

    def _done_with(self, spec: Spec) -> None:
        for path in (spec.stdout, spec.stderr):
            if path:
                self._files.done(path)

    def _report(self, token: bytes, kind: bytes, reason: bytes, value: int | None, core: int, tail: list[str]) -> None:
        self._sequence += 1
        shown = [line.encode() for line in tail] if self._report_bytes < REPORT_BYTES else []
        fixed = (b"%d" % self._sequence, token, kind, reason, b"" if value is None else b"%d" % value)
        report = pack(b"exit", *fixed, b"%d" % core, b"%.6f" % time.time(), *shown)
        self._reports[self._sequence] = report
        self._report_bytes += len(report)
        if self._agent is not None:
            self._agent.outbox += report

    def _unkillable(self, proc: Proc, pids: list[int]) -> None:
        listed = ", ".join(map(str, pids[:20]))
        text = f"still alive {KILL_BOUND:g} s after SIGKILL (uninterruptible sleep, state D?): pid {listed}"
        if proc.exited:
            self._tell(b"note", f"left over from proc with leader {proc.pid}: {text}".encode())
        else:
            del self._procs.by_token[proc.spec.token]
            self._report(proc.spec.token, b"failed", text.encode(), None, 0, [])

    # -- the end --------------------------------------------------------------------------------------------------

    def _stop(self, grace: float) -> None:
        self._stopping = True
        self._stop_by = min(self._stop_by, time.monotonic() + grace + KILL_BOUND + 1)
        for proc in list(self._procs.by_token.values()):
            self._procs.terminate(proc, grace)
        self._timers.at(self._stop_by, lambda: None)  # so that the loop comes by to see the time

    def _finished(self) -> bool:
        if time.monotonic() >= self._stop_by:
            return True
        if len(self._procs):
            return False
        return self._procs.kill_strays()

    def _say_bye(self) -> None:
        self._files.close()
        self._tell(b"bye")
        if self._agent is not None:
            self._agent.sock.setblocking(True)
            self._agent.sock.settimeout(1.0)
            try:
                self._agent.sock.sendall(self._agent.outbox)
            except OSError:
                pass

    def _tell(self, *fields: bytes) -> None:
        if self._agent is not None:
            self._agent.outbox += pack(*fields)


def _open_pid(pid: int) -> int:
    """A descriptor that becomes readable when `pid` ends; -1 for pid 0, nobody to watch."""
    return os.pidfd_open(pid) if pid else -1


def _facts(proc: Proc) -> tuple[bytes, bytes, bytes]:
    return proc.spec.token, b"%d" % proc.pid, b"%.6f" % proc.started


def _one(fields: list[bytes]) -> bytes:
    if len(fields) != 1:
        raise ProtocolError("a command with too few or too many fields")
    return fields[0]


def _pair(item: bytes) -> tuple[bytes, bytes]:
    name, equals, value = item.partition(b"=")
    if not equals:
        raise ProtocolError("an environment item without '='")
    return name, value


def _seconds(field: bytes) -> float:
    seconds = float(field)
    if not seconds >= 0:
        raise ProtocolError("no number of seconds")
    return seconds
