"""`Stdin`: the way from the driver into a proc that was launched with `want_stdin` or `tty`, wherever it runs."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from ray_launcher.errors import LaunchError, ProcLauncherError, UnknownProcError
from ray_launcher.options import check_tty_size
from ray_launcher.port import gone_because

#: Bytes of one call; more would take a detour through Ray's object store.
_PIECE = 64 << 10
_CONTROL_D = b"\x04"


class Stdin:
    """What a proc reads, as one of its writers. Safe to use from several threads.

    Each byte that `write` has returned for is read once, and in order, whatever dies between here and the node's
    supervisor. What one call of up to 4,096 bytes writes stays together; longer pieces of several writers are mixed.
    The proc's output is read with `logs` and `follow`.

    Every method may block until the proc is on its node. They raise `UnknownProcError` for an id that is not known,
    BrokenPipeError when the proc has ended, or lost its node, and `ProcLauncherError` for one that was launched
    without `want_stdin` and `tty`, or when the spawner is gone.
    """

    def __init__(self, proc_id: str, session: str, location: ObjectRef[Any], connected: Callable[[], bool]) -> None:
        self._proc_id, self._session = proc_id, session
        self._location, self._connected = location, connected
        self._writer = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._agent: Any = None
        self._token = self._kind = ""
        self._taken = 0  # bytes of ours that the supervisor has
        self._unsure = False  # somebody has interrupted a call
        self._closed = False

    @property
    def tty(self) -> bool:
        """Whether it is a terminal."""
        with self._lock:
            if not self._kind:
                self._put(b"")
            return self._kind == "terminal"

    def write(self, data: bytes) -> None:
        """Return when the node has all of `data`; blocks while the proc does not read and 256 KiB are waiting there.

        Raises BrokenPipeError also when the proc has closed its stdin, ValueError after `close`, TypeError.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data must be bytes, not {type(data).__name__}; write text.encode()")
        with self._lock:
            if self._closed:
                raise ValueError(f"stdin of proc {self._proc_id!r} has been closed here")
            self._write(bytes(data))

    def close(self) -> None:
        """End the input behind what has been written; of a terminal, press Ctrl-D. A second call does nothing.

        Nothing is raised where nobody reads any more.
        """
        with self._lock:
            if self._closed:
                return
            try:
                if not self._kind:
                    self._put(b"")
                if self._kind == "terminal":
                    self._write(_CONTROL_D)
                else:
                    self._put(b"", last=True)
            except BrokenPipeError:
                pass
            self._closed = True

    def resize(self, rows: int, columns: int) -> None:
        """Give its terminal another size, 1 to 65,535 each; nothing where there is none. Raises TypeError, ValueError.

        What runs in the foreground gets SIGWINCH.
        """
        size = check_tty_size("(rows, columns)", (rows, columns))
        agent, token = self._reach()
        self._answer(agent.resize.remote(token, *size))

    def _write(self, data: bytes) -> None:
        if self._unsure:
            self._put(b"")
        for at in range(0, len(data), _PIECE):
            self._put(data[at : at + _PIECE])

    def _put(self, data: bytes, *, last: bool = False) -> None:
        """Return when it has been taken."""
        agent, token = self._reach()
        unsure, self._unsure = self._unsure, True
        left = memoryview(data)
        while True:
            answer = self._answer(agent.put.remote(token, self._writer, self._taken, bytes(left), last))
            if answer is None:
                continue
            taken, state = answer
            self._check_state(state)
            if not self._kind:
                self._kind = state
            if unsure:
                self._taken, unsure = max(self._taken, taken), False
            if not 0 <= taken - self._taken <= len(left):
                raise ProcLauncherError(f"proc {self._proc_id!r}: {self._taken - taken} bytes of input are lost")
            left, self._taken = left[taken - self._taken :], taken
            if not left:
                break
            if state == "shut":
                self._unsure = False
                raise BrokenPipeError(f"proc {self._proc_id!r} has closed its stdin, or somebody else has")
        self._unsure = False

    def _check_state(self, state: str) -> None:
        if state == "none":
            raise ProcLauncherError(f"proc {self._proc_id!r} has no stdin: launch it with want_stdin=True or tty=True")
        if state == "ended":
            raise BrokenPipeError(f"proc {self._proc_id!r} has ended")

    def _reach(self) -> tuple[Any, str]:
        if self._agent is None:
            found = self._answer(self._location)
            if found is None:
                raise UnknownProcError(f"no proc {self._proc_id!r} in session {self._session}")
            self._agent, self._token = found.agent, found.token
            if self._agent is None:
                raise BrokenPipeError(f"proc {self._proc_id!r} has ended, or its node is lost")
        return self._agent, self._token

    def _answer(self, ref: ObjectRef[Any]) -> Any:
        if not self._connected():  # Ray would start a cluster of its own
            raise LaunchError("this process is no longer connected to the launcher's cluster: Ray was shut down")
        try:
            return ray.get(ref)
        except RayError as error:
            if ref is self._location:
                raise ProcLauncherError(f"cannot reach the spawner: it is gone ({gone_because(error)})") from None
            raise BrokenPipeError(f"proc {self._proc_id!r}: its node is lost ({gone_because(error)})") from None
