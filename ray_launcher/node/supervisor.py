"""The supervisor: the small process that owns a node's procs. Standard library only, one thread, no Ray.

Its node agent starts it (through `node.main`) and talks to it over a Unix socket; it starts, reaps, reads tails and
kills. It outlives its agent: exit reports are kept until acknowledged, and a new agent that connects is told what
runs. It ends its procs and itself when told to, when no agent has been there for the orphan grace, when the lease that
its agent renews has run out, as soon as the raylet has gone, or at SIGTERM. It may import nothing heavy: every node
pays for its size.

Its agent's commands are in `commands`. Supervisor to agent: exit SEQ TOKEN NOTE KIND REASON VALUE CORE TIME
*TAIL, hello PID *(TOKEN PID STARTED NOTE) (unacknowledged exits come before it), started *(TOKEN PID STARTED),
synced (all that was sent before has been carried out), took TOKEN WRITER OFFSET STATE (see `inputs`), superseded (by
another agent), note TEXT, bye.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time

from ray_launcher.node import commands, process, proctable
from ray_launcher.node.failures import explain
from ray_launcher.node.growth import Growth
from ray_launcher.node.guard import Fence
from ray_launcher.node.inputs import Inputs
from ray_launcher.node.kinship import Proc
from ray_launcher.node.logfiles import LogFiles
from ray_launcher.node.peers import Peer, Peers
from ray_launcher.node.process import SetupError, Starter
from ray_launcher.node.procs import Procs
from ray_launcher.node.protocol import ProtocolError, pack
from ray_launcher.node.reports import Reports, ended, failed
from ray_launcher.node.spec import Spec
from ray_launcher.node.tail import read_tail
from ray_launcher.node.timelimit import TimeLimit
from ray_launcher.node.timers import Timer, Timers

#: Seconds within which the agent learns that a proc has started.
_ANNOUNCE = 0.02
#: Seconds for which exits are gathered while launches are waiting.
_COALESCE = 0.002
#: The most seconds that procs get between TERM and KILL when the raylet has gone: the node is being torn down.
_TEARDOWN_GRACE = 2.0
#: The same when the lease has run out: soon somebody will be told that they are dead.
_FENCE_GRACE = 1.0


class Graces:
    """How many seconds things take; `node.client.start` describes them."""

    def __init__(self, orphan_grace: float, end_grace: float, leftover_grace: float, kill_bound: float) -> None:
        self.orphan_grace, self.end_grace = orphan_grace, end_grace
        self.leftover_grace, self.kill_bound = leftover_grace, kill_bound


class Supervisor:
    """Serves one listening socket until it is stopped, orphaned, or its raylet is gone."""

    def __init__(self, listener: socket.socket, raylet: int, graces: Graces, fence: Fence) -> None:
        proctable.check()
        process.become_subreaper()
        self._graces, self._fence = graces, fence
        self._timers = Timers()
        self._procs = Procs(self._timers, graces.leftover_grace, graces.kill_bound, self._stuck, self._gone)
        self._files = LogFiles()
        self._growth = Growth(self._timers, lambda text: self._tell(b"note", os.fsencode(text)))
        self._starter = Starter(self._files)
        self._base: dict[bytes, bytes] = {}
        self._reports = Reports(time.monotonic_ns())  # what was meant for a supervisor before us must not hit ours
        self._agent: Peer | None = None
        self._orphaned: Timer | None = None
        self._lease: Timer | None = None
        self._flush_at = 0.0
        self._unannounced: list[Proc] = []
        self._awaited: set[bytes] = set()  # tokens: the agent wants to know when nothing is left of them
        self._asked_to_end = False  # by SIGTERM
        self._stopping = False
        self._stop_by = float("inf")
        self._epoll = select.epoll()
        self._inputs = Inputs(self._epoll, self._tell)
        self._peers = Peers(listener, self._epoll, self._timers, self._command, self._agent_left)
        self._wakeup, wakeup_in = os.pipe()
        for fd in (self._wakeup, wakeup_in):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wakeup_in, warn_on_full_buffer=False)
        process.own_signals(self._on_signal, signal.SIGCHLD, signal.SIGTERM)
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._raylet = os.pidfd_open(raylet) if raylet else -1
        if raylet:
            self._epoll.register(self._raylet, select.EPOLLIN)
        self._agent_left()

    def run(self) -> None:
        """Serve until the end; afterwards none of the procs is left, save what the kernel cannot kill."""
        while not self._finished():
            if self._asked_to_end:
                self._asked_to_end = False
                self.stop(self._graces.end_grace)
                continue  # with nothing to end there is no event to wait for
            for fd, events in self._epoll.poll(0 if self._peers.busy else self._timers.wait()):
                self._ready(fd, events)
            self._reap()
            self._flush()
            self._peers.serve()
            self._timers.fire()
            self._flush()
        self._say_bye()

    def _flush(self) -> None:
        """Write out; with launches waiting, only every so often: each write wakes the agent up, and costs it a core."""
        now = time.monotonic()
        if not self._peers.busy or now >= self._flush_at:
            self._flush_at = now + _COALESCE
            self._peers.flush()

    # -- events ---------------------------------------------------------------------------------------------------

    def _ready(self, fd: int, events: int) -> None:
        if fd == self._wakeup:
            os.read(fd, 1 << 12)
        elif fd == self._raylet:
            self._epoll.unregister(fd)
            self.stop(min(self._graces.end_grace, _TEARDOWN_GRACE))
        elif not self._inputs.ready(fd, events):
            self._peers.ready(fd, events)

    def _on_signal(self, signum: int, _frame: object) -> None:
        """No more than a note: it may interrupt anything."""
        if signum == signal.SIGTERM:
            self._asked_to_end = True

    def _agent_left(self) -> None:
        self._agent = None
        self._orphaned = self._timers.after(self._graces.orphan_grace, lambda: self.stop(self._graces.end_grace))

    def _reap(self) -> None:
        for proc, status in self._procs.reap():
            self._inputs.ended(proc.token)
            if not proc.given_up:  # else its port has been told already
                self._report(proc.token, proc.note, ended(status), self._tail(proc) + _own_words(proc))

    def _tail(self, proc: Proc) -> list[str]:
        stderr = proc.outputs[1]
        return read_tail(stderr, proc.tail_lines, proc.stderr_begin, self._growth.freed(stderr)) if stderr else []

    # -- commands -------------------------------------------------------------------------------------------------

    def _command(self, peer: Peer, verb: bytes, fields: list[bytes]) -> None:
        if verb == b"hello":
            self._hello(peer)
        elif peer is not self._agent:
            raise ProtocolError("a command before hello")
        else:
            commands.carry_out(self, verb, fields)

    def base(self, environ: dict[bytes, bytes]) -> None:
        """See `Commanded`."""
        self._base = environ

    def gone(self, token: bytes) -> None:
        """See `Commanded`."""
        if token in self._procs:
            self._awaited.add(token)
        else:
            self._tell(b"gone", token)

    def acknowledge(self, sequences: list[int]) -> None:
        """See `Commanded`."""
        self._reports.acknowledge(sequences)

    def sync(self) -> None:
        """See `Commanded`."""
        self._tell(b"synced")

    def terminate(self, token: bytes, timeout: float) -> None:
        """See `Commanded`."""
        proc = self._procs.running.get(token)
        if proc is not None:
            self._procs.terminate(proc, timeout)

    def kill(self, token: bytes) -> None:
        """See `Commanded`."""
        proc = self._procs.running.get(token)
        if proc is not None:
            self._procs.kill(proc)

    def signal(self, token: bytes, signum: int, sender: bytes, number: int) -> None:
        """See `Commanded`."""
        proc = self._procs.running.get(token)
        if proc is None or (sender and number <= proc.signals.get(sender, -1)):
            return  # sent again by an agent that does not know whether we have heard it
        if sender:
            proc.signals[sender] = number
        self._procs.signal(proc, signum)

    def put(self, token: bytes, writer: bytes, offset: int, data: bytes, last: bool) -> None:
        """See `Commanded`."""
        self._inputs.put(token, writer, offset, data, last)

    def resize(self, token: bytes, rows: int, columns: int) -> None:
        """See `Commanded`."""
        self._inputs.resize(token, rows, columns)

    def renew(self, until: float) -> None:
        """See `Commanded`."""
        if self._lease is not None:
            self._lease.cancel()
        self._fence.move(until)
        self._lease = self._timers.at(until, lambda: self.stop(min(self._graces.end_grace, _FENCE_GRACE)))

    def _hello(self, peer: Peer) -> None:
        """A new agent takes over from the one before: what runs, and every report that nobody acknowledged."""
        previous, self._agent = self._agent, peer
        if previous is not None and previous is not peer:
            previous.is_agent = False
            self._peers.dismiss(previous, pack(b"superseded"))
        peer.is_agent = True
        if self._orphaned is not None:
            self._orphaned.cancel()
        for report in self._reports.frames():
            peer.outbox += report
        running = [field for proc in self._procs.running.values() for field in (*_facts(proc), proc.note)]
        self._tell(b"hello", b"%d" % os.getpid(), *running)

    def launch(self, spec: Spec) -> None:
        """See `Commanded`."""
        if spec.token in self._procs or spec.token in self._reports:
            return  # sent again by an agent that has not seen our answer
        if self._stopping:
            self._report(spec.token, spec.note, failed("the node's supervisor is ending"), [])
            return
        env: dict[bytes, bytes] = {}
        try:
            env = process.environment(spec, self._base)
            pid, stderr_begin, given = self._starter.start(spec, env)
            proc = Proc(spec, pid, stderr_begin)
        except SetupError as error:
            self._report(spec.token, spec.note, failed(*explain(error, spec, env)), [])
            self._done_with(spec.stdout, spec.stderr)
        else:
            self._procs.add(proc)
            if given is not None:
                self._inputs.add(spec.token, given)
            for path in filter(None, proc.outputs):
                self._growth.add(path, spec.log_limit)
            if spec.limits is not None:
                proc.time_limit = TimeLimit(spec.limits, proc, self._procs, self._timers)
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

    # -- answers --------------------------------------------------------------------------------------------------

    def _report(self, token: bytes, note: bytes, end: tuple[bytes, ...], tail: list[str]) -> None:
        frame = self._reports.add(token, note, end, tail)
        if self._agent is not None:
            self._agent.outbox += frame

    def _stuck(self, proc: Proc, pids: list[int]) -> None:
        listed = ", ".join(map(str, pids[:20]))
        bound = self._graces.kill_bound
        text = (
            f"still alive {bound:g} s after SIGKILL (uninterruptible sleep, state D, or another user's): pid {listed}"
        )
        if proc.exited:
            self._tell(b"note", f"left over from proc with leader {proc.pid}: {text}".encode())
        else:
            self._report(proc.token, proc.note, failed(text), _own_words(proc))

    def _gone(self, proc: Proc) -> None:
        self._inputs.remove(proc.token)
        self._done_with(*proc.outputs)
        if proc.token in self._awaited:
            self._awaited.discard(proc.token)
            self._tell(b"gone", proc.token)

    def _done_with(self, *outputs: bytes) -> None:
        for path in outputs:
            if path:
                self._growth.done(path)
                self._files.done(path)

    def _tell(self, *fields: bytes) -> None:
        if self._agent is not None:
            self._agent.outbox += pack(*fields)

    # -- the end --------------------------------------------------------------------------------------------------

    def stop(self, grace: float) -> None:
        """See `Commanded`."""
        self._stopping = True
        latest = grace + self._graces.leftover_grace + self._graces.kill_bound + 1
        self._stop_by = min(self._stop_by, time.monotonic() + latest)
        self._timers.at(self._stop_by, lambda: None)  # so that the loop comes by to see the time
        self._procs.terminate_all(grace)

    def _finished(self) -> bool:
        if not self._stopping:
            return False
        if time.monotonic() >= self._stop_by:
            return True
        return self._procs.ended and self._procs.kill_strays()

    def _say_bye(self) -> None:
        self._files.close()
        if self._agent is None:
            return
        self._tell(b"bye")
        self._agent.sock.settimeout(1.0)
        try:
            self._agent.sock.sendall(self._agent.outbox)
        except OSError:
            pass


def _own_words(proc: Proc) -> list[str]:
    """What our time limit had to do with its end, which this is."""
    return [] if proc.time_limit is None else proc.time_limit.over()


def _facts(proc: Proc) -> tuple[bytes, bytes, bytes]:
    return proc.token, b"%d" % proc.pid, b"%.6f" % proc.started
