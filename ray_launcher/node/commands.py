"""What an agent tells its supervisor: verbs and fields, taken apart, checked, and handed on.

hello, base *NAME=VALUE, launch SPEC, terminate TOKEN SECONDS, kill TOKEN, signal TOKEN SIGNUM [SENDER NUMBER],
input TOKEN WRITER OFFSET LAST DATA, resize TOKEN ROWS COLUMNS, gone TOKEN, ack *SEQ, lease UNTIL (`time.monotonic`),
sync, stop SECONDS. See `Commanded` for what they do; hello, which makes a peer the agent, comes before all others and
is not ours.
"""

from __future__ import annotations

import signal

from ray_launcher.node import reserve
from ray_launcher.node.inputs import dimension
from ray_launcher.node.protocol import ProtocolError
from ray_launcher.node.spec import Spec

#: Of a writer's name.
_NAME_BYTES = 64

TYPE_CHECKING = False  # typing's own costs the supervisor a megabyte
if TYPE_CHECKING:
    from typing import Protocol

    class Commanded(Protocol):
        """The supervisor, as its agent sees it. For a token that does not run: nothing, by contract."""

        def base(self, environ: dict[bytes, bytes]) -> None:
            """What launches inherit from now on."""

        def launch(self, spec: Spec) -> None:
            """Start a proc, unless its token is known."""

        def terminate(self, token: bytes, timeout: float) -> None:
            """TERM it, KILL it so many seconds later."""

        def kill(self, token: bytes) -> None:
            """KILL it."""

        def signal(self, token: bytes, signum: int, sender: bytes, number: int) -> None:
            """Send a signal. Of one sender, a number that is not higher than the last does nothing."""

        def put(self, token: bytes, writer: bytes, offset: int, data: bytes, last: bool) -> None:
            """Give it input. offset: of the data in all that comes from this writer; what is not new does nothing."""

        def resize(self, token: bytes, rows: int, columns: int) -> None:
            """Change the size of its terminal."""

        def gone(self, token: bytes) -> None:
            """Say when nothing of its tree is left."""

        def acknowledge(self, sequences: list[int]) -> None:
            """These reports need not be kept any longer."""

        def renew(self, until: float) -> None:
            """Nobody takes the node for lost before then."""

        def sync(self) -> None:
            """Say that all that was sent before has been carried out."""

        def stop(self, grace: float) -> None:
            """TERM every proc, KILL what is left so many seconds later, and end."""


def carry_out(supervisor: Commanded, verb: bytes, fields: list[bytes]) -> None:
    """Any command but hello. Raises `ProtocolError`, ValueError and OverflowError for what is none."""
    if verb == b"launch":
        supervisor.launch(reserve.with_room(Spec.from_fields, fields))
    elif verb == b"base":
        supervisor.base(dict(_pair(item) for item in fields))
    elif verb in (b"ack", b"lease", b"sync", b"stop"):
        _housekeeping(supervisor, verb, fields)
    else:
        _request(supervisor, verb, fields)


def _housekeeping(supervisor: Commanded, verb: bytes, fields: list[bytes]) -> None:
    """What is about the supervisor itself."""
    if verb == b"ack":
        supervisor.acknowledge([int(_one(fields[:1])), *map(int, fields[1:])])
    elif verb == b"lease":
        supervisor.renew(_seconds(_one(fields)))
    elif verb == b"stop":
        supervisor.stop(_seconds(_one(fields)))
    else:
        supervisor.sync()


def _request(supervisor: Commanded, verb: bytes, fields: list[bytes]) -> None:
    """What is about a proc."""
    token, *values = fields or [b""]
    if verb == b"terminate":
        supervisor.terminate(token, _seconds(_one(values)))
    elif verb == b"signal":
        signum, sender, number = values if len(values) == 3 else (_one(values), b"", b"0")
        supervisor.signal(token, _signum(signum), sender, int(number))
    elif verb == b"kill":
        supervisor.kill(token)
    elif verb == b"gone":
        supervisor.gone(token)
    else:
        _input(supervisor, verb, token, values)


def _input(supervisor: Commanded, verb: bytes, token: bytes, values: list[bytes]) -> None:
    """What is for a proc to read."""
    if verb == b"input" and len(values) == 4:
        writer, offset, last, data = values
        if len(writer) > _NAME_BYTES or int(offset) < 0:
            raise ProtocolError("input of no writer, or at no offset")
        supervisor.put(token, writer, int(offset), data, last == b"1")
    elif verb == b"resize" and len(values) == 2:
        supervisor.resize(token, *map(dimension, values))
    else:
        raise ProtocolError("an unknown verb, or one with too few or too many fields")


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


def _signum(field: bytes) -> int:
    signum = int(field)
    if not 0 < signum < signal.NSIG:
        raise ProtocolError("no such signal")
    return signum
