"""The guard: the supervisor's parent, which does nothing until the supervisor dies and then kills what it leaves.

It is a child subreaper, so everything below a dead supervisor becomes its own: leaders, grandchildren, and whatever
escaped with setsid or a double fork. A parent-death signal would reach the leaders only. The other way round, the
supervisor takes the guard's death as the order to stop. A supervisor that is stuck (starting a program from a file
system that hangs, stopped) when the lease of its procs has run out is killed: they must be dead before anybody is told
so. Whoever holds the directory's lock is one of the two: once
it is free, nothing of theirs is left. The guard, the last to leave, takes the directory with it.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time

from ray_launcher.node import process, proctable

#: Seconds from the end of the lease until a supervisor that has not ended is taken for stuck.
_STUCK = 1.5


class Fence:
    """Until when the lease of the procs runs (`time.monotonic`), told to the guard through shared memory."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)
        self.move(float("inf"))

    def move(self, until: float) -> None:
        """The lease has been renewed."""
        self._shared[:] = struct.pack("d", until)

    def patience(self) -> float:
        """Seconds until a supervisor that is there still must be stuck."""
        until: float = struct.unpack("d", self._shared[:])[0]
        return until + _STUCK - time.monotonic()


def fork_guarded(directory: str, lock: int, kill_bound: float) -> Fence:
    """Fork: return in the child, the supervisor to be; the parent stays as its guard and never returns.

    directory: the supervisor's, to be removed at the end.  lock: the one file descriptor that the guard keeps.
    kill_bound: seconds of repeated SIGKILL after which the guard leaves what the kernel will not end.
    """
    process.become_subreaper()
    fence = Fence()
    guard = os.getpid()
    pid = os.fork()
    if pid == 0:
        process.die_with_parent(signal.SIGTERM)
        if os.getppid() != guard:
            os._exit(1)
        return fence
    try:
        _guard(pid, lock, fence, kill_bound)
        _remove(directory, lock)
    finally:
        os._exit(0)


def _guard(supervisor: int, lock: int, fence: Fence, kill_bound: float) -> None:
    process.own_signals(lambda _signum, _frame: None)
    os.setsid()  # what is sent to the supervisor's group must not hit both
    os.closerange(0, lock)
    os.closerange(lock + 1, os.sysconf("SC_OPEN_MAX"))  # among them the socket: a dead supervisor's must not answer
    _await(supervisor, fence)
    give_up = time.monotonic() + kill_bound
    while time.monotonic() < give_up:
        for pid in proctable.descendants(os.getpid()):
            found = proctable.stat(pid)
            if found is not None and found.alive:
                proctable.send(found, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)  # the kernel takes a moment to carry a SIGKILL out


def _await(supervisor: int, fence: Fence) -> None:
    """Return when the supervisor is dead, or has been sent a SIGKILL."""
    while (patience := fence.patience()) > 0:
        signal.sigtimedwait({signal.SIGCHLD}, min(patience, 3600.0))
        try:
            while ended := os.waitpid(-1, os.WNOHANG)[0]:
                if ended == supervisor:
                    return
        except ChildProcessError:
            return
    os.kill(supervisor, signal.SIGKILL)


def _remove(directory: str, lock: int) -> None:
    """Remove the directory and, when it was the last, its parent; but not what a supervisor said as it crashed."""
    try:
        os.unlink("socket", dir_fd=lock)
    except OSError:
        pass
    _remove_secrets(lock)
    try:
        if os.stat("supervisor.log", dir_fd=lock).st_size == 0:
            os.unlink("supervisor.log", dir_fd=lock)
        os.rmdir(directory)
        os.rmdir(os.path.dirname(directory))
    except OSError:
        pass  # last words, other sessions' directories, or somebody tidied up


def _remove_secrets(lock: int) -> None:
    """What agents have put there for procs: a directory for each launch. An agent may be at it, too."""
    try:
        for _, below, files, fd in os.fwalk("secrets", topdown=False, dir_fd=lock):
            for name in files:
                os.unlink(name, dir_fd=fd)
            for name in below:
                os.rmdir(name, dir_fd=fd)
        os.rmdir("secrets", dir_fd=lock)
    except OSError:
        pass  # there are none, or the agent removes the rest
