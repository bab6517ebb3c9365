"""The supervisor's executable, run by path with `python -I -S`: it must not import the package above it, or Ray.

Usage: main.py DIRECTORY RAYLET_PID ORPHAN_GRACE END_GRACE. Takes the lock of DIRECTORY, listens on DIRECTORY/socket,
leaves its parent (so that nothing which kills a Ray worker's children finds it), becomes guard and supervisor, writes
its pid to stdout as the sign that it listens, and serves. Exit status 3: DIRECTORY has a supervisor already.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys


def _stand_in_packages() -> None:
    """Make the modules beside this one importable without the packages' own code, which would import Ray."""
    node = os.path.dirname(os.path.abspath(__file__))
    for name, path in (("ray_launcher", os.path.dirname(node)), ("ray_launcher.node", node)):
        package = type(sys)(name)
        package.__path__ = [path]
        sys.modules[name] = package


def main(directory: str, raylet: str, orphan_grace: str, end_grace: str) -> int:
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 3
    os.chdir(directory)  # a short relative name: a socket's path may have 107 bytes and no more
    if os.path.lexists("socket"):
        os.unlink("socket")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("socket")
    os.chmod("socket", 0o600)
    listener.listen(16)
    listener.setblocking(False)
    os.chdir("/")
    if os.fork():
        os._exit(0)
    _stand_in_packages()
    from ray_launcher.node.guard import fork_guarded
    from ray_launcher.node.supervisor import Supervisor

    fork_guarded()
    serving = Supervisor(listener, int(raylet), float(orphan_grace), float(end_grace))
    os.write(1, b"%d\n" % os.getpid())
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):  # stderr is the agent's file for our last words
        os.dup2(null, fd)
    os.close(null)
    serving.run()
    os.unlink(os.path.join(directory, "socket"))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
