"""The supervisor's executable, run by path with `python -I -S`: it must not import the package above it, or Ray.

Usage: main.py DIRECTORY RAYLET_PID ORPHAN_GRACE END_GRACE LEFTOVER_GRACE KILL_BOUND. Takes the lock of DIRECTORY,
listens on DIRECTORY/socket, leaves its parent (so that nothing which kills a Ray worker's children finds it), becomes
guard and supervisor, writes its pid to stdout as the sign that it listens, and serves. Where DIRECTORY has a
supervisor already it says so on stdout instead, and its exit status is 3. Where the node lacks what it takes, it says
"failed ERRNO TEXT" there: stderr is DIRECTORY/supervisor.log, for which there may be no room.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys

TYPE_CHECKING = False  # typing's own costs the supervisor a megabyte
if TYPE_CHECKING:
    from ray_launcher.node.supervisor import Supervisor


def main(directory: str, raylet: str, *seconds: str) -> int:
    """Become the supervisor of `directory`; returns when it has ended, or could not start."""
    try:
        serving = _start(directory, raylet, *seconds)
    except (OSError, MemoryError) as error:
        code = errno.ENOMEM if isinstance(error, MemoryError) else error.errno or 0
        os.write(1, b"failed %d %s\n" % (code, (str(error) or "no memory").encode()))
        return 1
    if serving is None:
        return 3
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):  # stderr is the file for our last words
        os.dup2(null, fd)
    os.close(null)
    serving.run()
    return 0


def _start(directory: str, raylet: str, *seconds: str) -> Supervisor | None:
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # no child may inherit what we did
    _check_raylet(int(raylet))
    _make_directory(directory)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.write(1, b"there is one already\n")
        return None
    log = os.open("supervisor.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600, dir_fd=lock)
    os.dup2(log, 2)
    os.close(log)
    listener = _listen(lock)
    if os.fork():
        os._exit(0)
    _stand_in_packages()
    from ray_launcher.node import reserve
    from ray_launcher.node.guard import fork_guarded
    from ray_launcher.node.supervisor import Graces, Supervisor

    graces = Graces(*map(float, seconds))
    fence = fork_guarded(directory, lock, graces.kill_bound)
    reserve.keep_back()
    serving = Supervisor(listener, int(raylet), graces, fence)
    os.write(1, b"%d\n" % os.getpid())
    return serving


def _make_directory(path: str) -> None:
    """And the one above it, which the last supervisor that leaves takes along, perhaps just now."""
    while True:
        for each in (os.path.dirname(path), path):
            try:
                os.mkdir(each, 0o700)
            except FileExistsError:
                pass
            except FileNotFoundError:
                if each != path:
                    raise
                break
        else:
            return


def _check_raylet(pid: int) -> None:
    """A node without its raylet is on its way out."""
    try:
        if pid:
            os.close(os.pidfd_open(pid))
    except ProcessLookupError:
        raise OSError("the node's raylet has gone") from None


def _listen(directory: int) -> socket.socket:
    """Listen on the directory's socket, by a short relative name: a socket's path may have 107 bytes and no more."""
    os.fchdir(directory)
    if os.path.lexists("socket"):
        os.unlink("socket")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("socket")
    os.chmod("socket", 0o600)
    listener.listen(16)
    listener.setblocking(False)
    os.chdir("/")
    return listener


def _stand_in_packages() -> None:
    """Make the modules beside this one importable without the packages' own code, which would import Ray."""
    node = os.path.dirname(os.path.abspath(__file__))
    for name, path in (("ray_launcher", os.path.dirname(node)), ("ray_launcher.node", node)):
        package = type(sys)(name)
        package.__path__ = [path]
        sys.modules[name] = package


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
