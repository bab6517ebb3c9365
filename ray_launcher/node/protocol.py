"""The wire between a node agent and its supervisor: frames of byte fields over a Unix stream socket.

A frame is a 4-byte big-endian body length and that many bytes of body; the body is a run of fields, each a
4-byte length and its bytes. The first field is the verb. The format has no types and no nesting, so hostile
bytes can do no more than raise `ProtocolError`. Both ends use this module; it may import nothing but builtins.
"""

from __future__ import annotations

#: Larger than any argv plus environment that Linux can exec (6 MiB with the usual 8 MiB stack).
MAX_FRAME = 32 << 20


class ProtocolError(Exception):
    """The peer sent bytes that are no frame."""


def pack(*fields: bytes) -> bytes:
    """Join fields into one frame. Raises `ProtocolError` when it would exceed `MAX_FRAME`."""
    body = b"".join([part for field in fields for part in (len(field).to_bytes(4, "big"), field)])
    if len(body) > MAX_FRAME:
        raise ProtocolError(f"a frame of {len(body)} bytes exceeds the limit of {MAX_FRAME}")
    return len(body).to_bytes(4, "big") + body


def unpack(body: bytes) -> list[bytes]:
    """Split a frame's body into its fields; at least one, the verb. Raises `ProtocolError`."""
    fields = []
    at, end = 0, len(body)
    while at < end:
        start = at + 4
        at = start + int.from_bytes(body[at:start], "big")
        if start > end or at > end:
            raise ProtocolError("a field runs past the end of its frame")
        fields.append(body[start:at])
    if not fields:
        raise ProtocolError("an empty frame")
    return fields


class FrameReader:
    """Turns a byte stream, fed in pieces of any size, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[list[bytes]]:
        """Return the frames that `data` completes. After a `ProtocolError` the stream is of no more use.

        After a MemoryError nothing has been taken: feed it again.
        """
        self._buffer += data
        try:
            return self._complete()
        except MemoryError:
            del self._buffer[len(self._buffer) - len(data) :]
            raise

    def _complete(self) -> list[list[bytes]]:
        buffer = self._buffer
        frames = []
        at = 0
        while len(buffer) - at >= 4:
            size = int.from_bytes(buffer[at : at + 4], "big")
            if size > MAX_FRAME:
                raise ProtocolError(f"a frame of {size} bytes exceeds the limit of {MAX_FRAME}")
            if len(buffer) - at - 4 < size:
                break
            frames.append(unpack(bytes(buffer[at + 4 : at + 4 + size])))
            at += 4 + size
        del buffer[:at]
        return frames
