"""Timers of the supervisor's loop: a heap of callbacks that can be cancelled."""

from __future__ import annotations

import heapq
import time

TYPE_CHECKING = False  # typing's own costs the supervisor a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable

#: The longest wait; epoll refuses those of months and more.
_LONGEST = 3600.0


class Timer:
    """One pending call. Cancelling twice, or after the call, does nothing."""

    __slots__ = ("call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Forget the call, and with it whatever it refers to."""
        self.call = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Timers:
    """Times are those of `time.monotonic`, in seconds; infinite ones never come."""

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._tidy_at = 64

    def at(self, when: float, call: Callable[[], None]) -> Timer:
        """Have `call` called at the time `when`, or as soon after it as the loop comes by."""
        timer = Timer(when, call)
        heapq.heappush(self._heap, timer)
        if len(self._heap) >= self._tidy_at:  # cancelled ones would stay until they are due
            self._heap = [pending for pending in self._heap if pending.call is not None]
            heapq.heapify(self._heap)
            self._tidy_at = max(64, 2 * len(self._heap))
        return timer

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Have `call` called that many seconds from now."""
        return self.at(time.monotonic() + seconds, call)

    def wait(self) -> float:
        """Seconds until the loop should come by again; -1 when nothing is pending (epoll's word for ever)."""
        while self._heap and self._heap[0].call is None:
            heapq.heappop(self._heap)
        return min(_LONGEST, max(0.0, self._heap[0].when - time.monotonic())) if self._heap else -1

    def fire(self) -> None:
        """Make the calls that are due, each once."""
        now = time.monotonic()
        while self._heap and (self._heap[0].call is None or self._heap[0].when <= now):
            call = heapq.heappop(self._heap).call
            if call is not None:
                call()
