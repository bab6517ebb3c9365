"""The supervisor's side of its socket: who may connect, frames in, frames out. Garbage costs the connection only."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections import deque

from ray_launcher.node import reserve
from ray_launcher.node.protocol import FrameReader, ProtocolError
from ray_launcher.node.timers import Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Connections at once; more push out the oldest that is not the agent's.
_MOST = 32
#: Commands taken from one peer between two looks at exits and timers.
_BURST = 8
#: Seconds without accepting after the kernel had no descriptor or memory for one more connection.
_PAUSE = 0.1
#: The same without reading where it has no memory; the whole loop waits, for nothing in it could do much.
_BREATH = 0.01


class Peer:
    """One connection: an agent once it has said hello, a stranger before."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = FrameReader()
        self.inbox: deque[list[bytes]] = deque()
        self.unread = b""  # received, but there was no memory to look at it
        self.outbox = bytearray()
        self.is_agent = False
        self.events = select.EPOLLIN


class Peers:
    """All connections.

    `command(peer, verb, fields)` is called for each frame; where it raises `ProtocolError` or `ValueError` the
    connection ends. `left()` is called when the agent's has ended.
    """

    def __init__(
        self,
        listener: socket.socket,
        epoll: select.epoll,
        timers: Timers,
        command: Callable[[Peer, bytes, list[bytes]], None],
        left: Callable[[], None],
    ) -> None:
        self._listener = listener
        self._epoll = epoll
        self._timers = timers
        self._command = command
        self._left = left
        self._peers: dict[int, Peer] = {}
        self._listen()

    @property
    def busy(self) -> bool:
        """Whether commands wait to be served."""
        return any(peer.inbox for peer in self._peers.values())

    def ready(self, fd: int, events: int) -> None:
        """Take up what epoll tells of a descriptor of ours."""
        if fd == self._listener.fileno():
            self._accept()
        elif fd in self._peers and events & ~select.EPOLLOUT:
            self._receive(self._peers[fd])

    def serve(self) -> None:
        """Carry out some of what waits, of everyone alike."""
        reserve.restore()  # it is not for launches
        for peer in list(self._peers.values()):
            try:
                for _ in range(min(_BURST, len(peer.inbox))):
                    verb, *fields = peer.inbox.popleft()
                    self._command(peer, verb, fields)
            except (ProtocolError, ValueError, OverflowError):  # garbage: the peer goes, the procs stay
                self.drop(peer)

    def flush(self) -> None:
        """Write what the sockets take."""
        for peer in list(self._peers.values()):
            try:
                while peer.outbox:
                    del peer.outbox[: peer.sock.send(peer.outbox)]
            except BlockingIOError:
                pass
            except OSError:
                self.drop(peer)
                continue
            wanted = select.EPOLLIN | (select.EPOLLOUT if peer.outbox else 0)
            if wanted != peer.events:
                peer.events = wanted
                self._epoll.modify(peer.sock.fileno(), wanted)

    def dismiss(self, peer: Peer, last: bytes) -> None:
        """End a connection with a last word, if there is room for it."""
        try:
            peer.sock.send(last)
        except OSError:
            pass
        self.drop(peer)

    def drop(self, peer: Peer) -> None:
        """End a connection. Twice does nothing."""
        if self._peers.pop(peer.sock.fileno(), None) is None:
            return
        self._epoll.unregister(peer.sock.fileno())
        peer.sock.close()
        peer.inbox.clear()  # what it still says is not heard
        if peer.is_agent:
            peer.is_agent = False
            self._left()

    def _listen(self) -> None:
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                self._epoll.unregister(self._listener.fileno())  # it stays readable: epoll would return at once, always
                self._timers.after(_PAUSE, self._listen)
            return
        _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            sock.close()
            return
        sock.setblocking(False)
        self._peers[sock.fileno()] = Peer(sock)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        if len(self._peers) > _MOST:
            self.drop(next(peer for peer in self._peers.values() if not peer.is_agent))

    def _receive(self, peer: Peer) -> None:
        if peer.inbox:
            return  # first things first; the kernel's buffer holds the sender back
        try:
            peer.unread = peer.unread or reserve.with_room(peer.sock.recv, 1 << 18)
            if not peer.unread:
                raise ConnectionError("closed by the peer")
            peer.inbox.extend(reserve.with_room(peer.reader.feed, peer.unread))
            peer.unread = b""
        except BlockingIOError:
            pass
        except MemoryError:
            time.sleep(_BREATH)
            self._timers.after(0, lambda: self._receive(peer))
        except (OSError, ProtocolError):
            self.drop(peer)
