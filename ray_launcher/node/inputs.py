"""What procs are given to read: pipes and terminals, of which the supervisor holds the one end.

Input comes in pieces with their offsets, from one or more writers, each of which counts its own: a piece that comes
again is known by that. A terminal's output is copied to the log file of the proc's stdout. Nothing here blocks, and a
program that does not read costs no more than one buffer.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios

from ray_launcher.node.protocol import ProtocolError

TYPE_CHECKING = False  # typing's own costs the supervisor a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes that wait for a program to read; what is beyond them stays with who sends it.
_MOST = 256 << 10
#: Bytes that stay together, whoever else writes: as in a pipe of the kernel's.
_TOGETHER = 4096
#: Writers of one proc that are remembered.
_WRITERS = 256
#: Bytes of one read of a terminal, which gives 4 KiB at most; reads in a row; and of one whose program has exited.
_READ, _READS, _LAST_READS = 1 << 16, 16, 1024
_BIGGEST = 0xFFFF


def check(stdin: bytes) -> None:
    """Raise `ProtocolError` unless it is what `Spec.stdin` can be."""
    if stdin.startswith(b"terminal "):
        _size(stdin)
    elif stdin not in (b"", b"pipe"):
        raise ProtocolError("an unknown kind of stdin")


def _size(stdin: bytes) -> tuple[int, int]:
    try:
        _, rows, columns = stdin.split(b" ")
        return dimension(rows), dimension(columns)
    except ValueError as error:
        raise ProtocolError("a terminal without a size") from error


def dimension(field: bytes) -> int:
    """Rows or columns. Raises ValueError."""
    number = int(field)
    if not 0 <= number <= _BIGGEST:
        raise ValueError("no size of a terminal")
    return number


class Input:
    """One pipe or terminal, made as `Spec.stdin` says. log: a descriptor for what a terminal shows.

    All its descriptors are closed on exec.
    """

    __slots__ = ("_end", "_log", "buffer", "fd", "last", "taken", "terminal", "waiting", "watched")

    def __init__(self, stdin: bytes, log: int) -> None:
        """Raises OSError."""
        self.terminal = stdin != b"pipe"
        self._end = self._log = -1  # the proc's; our own
        self.buffer = bytearray()
        self.last = False  # nothing comes behind what is in the buffer
        self.taken: dict[bytes, int] = {}  # by writer: how many bytes of its own have come
        self.waiting: list[bytes] = []  # writers that had to be put off
        self.watched = 0  # the events that epoll watches for
        if self.terminal:
            self.fd, self._end = os.openpty()
        else:
            self._end, self.fd = os.pipe()
        os.set_blocking(self.fd, False)
        if self.terminal:
            self.resize(*_size(stdin))
            try:
                self._log = os.dup(log)
            except OSError:
                self.close()
                raise

    def stdio(self, stdout: int, stderr: int) -> tuple[int, int, int]:
        """What the program is to be started with; these are for one without a terminal."""
        return (self._end,) * 3 if self.terminal else (self._end, stdout, stderr)

    def started(self) -> None:
        """The program runs. A terminal's other end stays open here, so that nobody hangs it up."""
        if not self.terminal:
            os.close(self._end)
            self._end = -1

    def resize(self, rows: int, columns: int) -> None:
        """Tells the foreground of a terminal with SIGWINCH."""
        if self.terminal and self.fd >= 0:
            fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Twice does nothing."""
        for fd in {self.fd, self._end, self._log} - {-1}:
            os.close(fd)
        self.fd = self._end = self._log = -1

    @property
    def state(self) -> bytes:
        """What its writers are told: "pipe" or "terminal" as long as it takes more, then "shut"."""
        if self.last or self.fd < 0:
            return b"shut"
        return b"terminal" if self.terminal else b"pipe"

    def take(self, writer: bytes, offset: int, data: bytes, last: bool) -> bool:
        """Take as much as there is room for of what is new; False: there was none.

        offset: of `data` in all that this writer has to say.
        """
        taken = self.taken.setdefault(writer, 0)
        if len(self.taken) > _WRITERS:
            del self.taken[next(iter(self.taken))]
        if self.state == b"shut" or offset > taken:
            return True
        room = max(0, _MOST - len(self.buffer))
        try:
            new = data[taken - offset :]
            part = b"" if room < len(new) <= _TOGETHER else new[:room]
            self.buffer += part
        except MemoryError:  # that may pass
            return False
        self.taken[writer] = taken + len(part)
        if last and len(part) == len(new) and not self.terminal:  # whose end is a key, as any other
            self.last = True
        return bool(part) or not new

    def copy(self, reads: int) -> None:
        """From a terminal to the log: what there is, within reason."""
        try:
            for _ in range(reads):
                data = os.read(self.fd, _READ)
                self._write_log(data)
        except (OSError, MemoryError):  # there is no more, for now or for good
            pass

    def _write_log(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._log, data) :]
        except OSError:  # a full disk: it is lost, as what a program writes there itself is
            pass


class Inputs:
    """Of all procs of one supervisor. tell(*fields): to the agent: took TOKEN WRITER OFFSET STATE."""

    def __init__(self, epoll: select.epoll, tell: Callable[..., None]) -> None:
        self._epoll, self._tell = epoll, tell
        self._by_token: dict[bytes, Input] = {}
        self._by_fd: dict[int, tuple[bytes, Input]] = {}

    def add(self, token: bytes, given: Input) -> None:
        """A proc has been started with it."""
        self._by_token[token] = given
        self._by_fd[given.fd] = token, given
        self._watch(given)

    def put(self, token: bytes, writer: bytes, offset: int, data: bytes, last: bool) -> None:
        """Take input, and tell how much of that writer's there is now; where there is no room, once there is."""
        given = self._by_token.get(token)
        if given is None:
            self._tell(b"took", token, writer, b"0", b"none")
        elif given.take(writer, offset, data, last):
            self._write(token, given)
            self._answer(token, given, writer)
        elif writer not in given.waiting:
            given.waiting.append(writer)

    def resize(self, token: bytes, rows: int, columns: int) -> None:
        """Nothing where there is no terminal."""
        given = self._by_token.get(token)
        if given is not None:
            given.resize(rows, columns)

    def ready(self, fd: int, events: int) -> bool:
        """Take up what epoll tells of a descriptor; False: it is none of ours."""
        found = self._by_fd.get(fd)
        if found is None:
            return False
        token, given = found
        if events & ~select.EPOLLIN:
            self._write(token, given)
        if given.terminal:
            given.copy(_READS)
        return True

    def ended(self, token: bytes) -> None:
        """The program has exited: what it wrote to its terminal is in the log when this returns."""
        given = self._by_token.get(token)
        if given is not None and given.terminal:
            given.copy(_LAST_READS)

    def remove(self, token: bytes) -> None:
        """Nothing of the proc is left."""
        given = self._by_token.pop(token, None)
        if given is not None:
            self.ended(token)
            self._shut(token, given)
            given.close()

    def _answer(self, token: bytes, given: Input, writer: bytes) -> None:
        self._tell(b"took", token, writer, b"%d" % given.taken.get(writer, 0), given.state)

    def _write(self, token: bytes, given: Input) -> None:
        try:
            while given.buffer and given.fd >= 0:
                del given.buffer[: os.write(given.fd, given.buffer)]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more
            given.buffer.clear()
            given.last = given.last or not given.terminal
        if given.last and not given.buffer:
            self._shut(token, given)
        if given.waiting and (len(given.buffer) <= _MOST // 2 or given.state == b"shut"):
            waiting, given.waiting = given.waiting, []
            for writer in waiting:
                self._answer(token, given, writer)
        self._watch(given)

    def _shut(self, token: bytes, given: Input) -> None:
        """It takes no more."""
        given.buffer.clear()
        given.last = True
        if self._by_fd.pop(given.fd, None) is not None and given.watched:
            self._epoll.unregister(given.fd)
            given.watched = 0
        if not given.terminal and given.fd >= 0:
            os.close(given.fd)
            given.fd = -1
        waiting, given.waiting = given.waiting, []
        for writer in waiting:
            self._answer(token, given, writer)

    def _watch(self, given: Input) -> None:
        wanted = (select.EPOLLIN if given.terminal else 0) | (select.EPOLLOUT if given.buffer else 0)
        if given.fd not in self._by_fd or wanted == given.watched:
            return
        if not given.watched:
            self._epoll.register(given.fd, wanted)
        elif wanted:
            self._epoll.modify(given.fd, wanted)
        else:
            self._epoll.unregister(given.fd)
        given.watched = wanted
