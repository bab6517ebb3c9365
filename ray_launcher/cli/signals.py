"""Signals as messages: what asks this process to end is handed on, and nothing is interrupted half-way."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

_ASK_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def deliver_to(receive: Callable[[int], object]) -> None:
    """From now on `receive(number)` is called, in the main thread, for each signal that asks us to end.

    What our parent has us ignore stays ignored, as under nohup; what it has blocked is not: pdsh blocks SIGINT in
    what it starts, and sends it.
    """

    def handler(number: int, _frame: FrameType | None) -> None:
        receive(number)

    for each in _ASK_TO_END:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASK_TO_END)


def ignore() -> None:
    """From now on these signals have no effect, nor while the interpreter exits, which undoes handlers but not this."""
    for each in _ASK_TO_END:
        signal.signal(each, signal.SIG_IGN)
