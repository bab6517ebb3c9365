"""The keeper of hosts: makes them, carries packets between them, and removes every trace of them when its stdin ends.

Usage: hosts_keeper.py DIRECTORY ADDRESS..., by path with `python -I -S`. A host is an init process in network, IPC,
process and mount namespaces of its own, with the interface `eth0`, whose other end is here; MPICH takes hosts that
share IPC for one machine. Writes the pids of the inits to stdout, as JSON. Each line on stdin, `[address, direction,
loss, delay]`, sets what happens to packets "from" or "to" a host: lost with the probability `loss`, else `delay`
seconds late. Each is answered with a line.

The packets are carried here rather than by a bridge with netem, because many kernels come without netem. Nothing is
ever made in the machine's own network namespace, and the kernel ends every process of a host with its init.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import json
import os
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

_INIT = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are reaped
print("up", flush=True)
sys.stdin.read()  # until the keeper is gone
"""
#: Seconds that an init gets to end by itself.
_PATIENCE = 5
_OWN_NAMESPACES = ["unshare", "--net", "--ipc", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
#: Bytes; more than any packet has.
_PACKET = 1 << 16
#: Packets read from one host before the others have their turn.
_BATCH = 64


class Init:
    """The first process of a host; the others end with it."""

    def __init__(self) -> None:
        command = [*_OWN_NAMESPACES, sys.executable, "-I", "-S", "-c", _INIT]
        self._unshare = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._unshare.stdout is not None
        if self._unshare.stdout.readline() != b"up\n":
            sys.exit("cannot make namespaces: " + " ".join(_OWN_NAMESPACES))
        with open(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children", encoding="ascii") as children:
            self.pid = int(children.read())
        self._pidfd = os.pidfd_open(self.pid)

    def end(self) -> None:
        """Return when every process of the host is gone."""
        assert self._unshare.stdin is not None
        self._unshare.stdin.close()
        try:
            self._unshare.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._unshare.wait()


class Link:
    """The interface of one host, seen from here."""

    def __init__(self, address: str, init: Init) -> None:
        self.treatment = {"from": (0.0, 0.0), "to": (0.0, 0.0)}  # loss, delay
        with open(f"/proc/{init.pid}/ns/net", "rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.fd, _TUNSETIFF, struct.pack("16sH", b"eth0", _IFF_TUN | _IFF_NO_PI))
        for words in (f"address add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            subprocess.run(["ip", *words.split()], check=True)

    def packets(self) -> list[bytes]:
        """Some of those that the host has sent."""
        packets: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(packets) < _BATCH:
                packets.append(os.read(self.fd, _PACKET))
        return packets

    def deliver(self, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # it is down
            os.write(self.fd, packet)


class Switch:
    """Carries packets between links, as late as it shall, and loses some."""

    def __init__(self, links: dict[str, Link]) -> None:
        self._links = {socket.inet_aton(address): link for address, link in links.items()}
        self._late: list[tuple[float, int, Link, bytes]] = []
        self._count = itertools.count()  # keeps the order of packets that are due at the same time

    def take_from(self, source: Link) -> None:
        for packet in source.packets():
            target = self._links.get(packet[16:20])  # of IPv4
            if target is not None:
                self._send(packet, source, target)

    def seconds_to_next(self) -> float | None:
        return max(0.0, self._late[0][0] - time.monotonic()) if self._late else None

    def deliver_what_is_due(self) -> None:
        while self._late and self._late[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(self._late)
            target.deliver(packet)

    def _send(self, packet: bytes, source: Link, target: Link) -> None:
        treatments = source.treatment["from"], target.treatment["to"]
        if any(random.random() < loss for loss, _ in treatments):  # noqa: S311
            return
        delay = sum(delay for _, delay in treatments)
        if delay:
            heapq.heappush(self._late, (time.monotonic() + delay, next(self._count), target, packet))
        else:
            target.deliver(packet)


def serve(links: dict[str, Link]) -> None:
    """Returns when stdin ends."""
    switch = Switch(links)
    by_fd = {link.fd: link for link in links.values()}
    poll = select.epoll()
    for fd in (0, *by_fd):
        poll.register(fd, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll(switch.seconds_to_next()):
            if fd in by_fd:
                switch.take_from(by_fd[fd])
            elif not _obey(links):
                return
        switch.deliver_what_is_due()


def _obey(links: dict[str, Link]) -> bool:
    """One line at a time comes, since each is answered."""
    line = os.read(0, 1 << 12)
    if line:
        address, direction, loss, delay = json.loads(line)
        links[address].treatment[direction] = loss, delay
        os.write(1, b"done\n")
    return bool(line)


def main(directory: str, *addresses: str) -> None:
    """Keep hosts with these addresses, and `directory` as long as they."""
    inits: list[Init] = []
    try:
        links = {}
        for address in addresses:
            inits.append(Init())
            links[address] = Link(address, inits[-1])
        os.write(1, json.dumps([init.pid for init in inits]).encode() + b"\n")
        serve(links)
    finally:
        for init in inits:
            init.end()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
