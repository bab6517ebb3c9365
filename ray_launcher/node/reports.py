"""Exit reports: how a launch ended, as frames that are kept until the agent acknowledges them."""

from __future__ import annotations

import os
import time

from ray_launcher.node.protocol import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Bytes of unacknowledged reports beyond which new ones go without their stderr tail.
REPORT_BYTES = 64 << 20
#: Bytes of a reason; a longer one names a program or a path that nobody would read to its end.
_REASON_BYTES = 16 << 10


def ended(status: int) -> tuple[bytes, ...]:
    """The fields KIND, REASON, VALUE and CORE of a leader's wait status."""
    if os.WIFSIGNALED(status):
        return b"signaled", b"", b"%d" % os.WTERMSIG(status), b"%d" % os.WCOREDUMP(status)
    return b"exited", b"", b"%d" % os.WEXITSTATUS(status), b"0"


def failed(reason: str, code: int | None = None) -> tuple[bytes, ...]:
    """The fields KIND, REASON, VALUE and CORE of a launch that came to nothing."""
    return b"failed", os.fsencode(reason)[:_REASON_BYTES], b"" if code is None else b"%d" % code, b"0"


class Reports:
    """The reports that nobody has acknowledged, oldest first."""

    def __init__(self) -> None:
        self._sequence = 0
        self._kept: dict[int, tuple[bytes, bytes]] = {}  # by sequence number: token, frame
        self._tokens: set[bytes] = set()
        self._bytes = 0

    def __contains__(self, token: bytes) -> bool:
        return token in self._tokens

    def frames(self) -> Iterable[bytes]:
        """All that are kept."""
        return (frame for _, frame in self._kept.values())

    def add(self, token: bytes, note: bytes, end: tuple[bytes, ...], tail: list[str]) -> bytes:
        """Keep one more; returns its frame."""
        self._sequence += 1
        shown = [line.encode() for line in tail] if self._bytes < REPORT_BYTES else []
        frame = pack(b"exit", b"%d" % self._sequence, token, note, *end, b"%.6f" % time.time(), *shown)
        self._kept[self._sequence] = token, frame
        self._tokens.add(token)
        self._bytes += len(frame)
        return frame

    def acknowledge(self, sequences: Iterable[int]) -> None:
        """Drop these; a number that is not kept does nothing."""
        for sequence in sequences:
            token, frame = self._kept.pop(sequence, (b"", b""))
            self._tokens.discard(token)
            self._bytes -= len(frame)
