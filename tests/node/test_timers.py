"""Timers fire in order, once, and cost nothing when they have been cancelled."""

from __future__ import annotations

import math
import time

from ray_launcher.node.timers import Timers


def test_those_that_are_due_fire_once_and_in_order() -> None:
    timers, fired = Timers(), list[int]()
    for n in (3, 1, 2):
        timers.at(time.monotonic() - 10 + n, lambda n=n: fired.append(n))  # type: ignore[misc]  # n is an int
    timers.after(9999, lambda: fired.append(4))
    timers.fire()
    timers.fire()
    assert fired == [1, 2, 3]


def test_a_cancelled_one_does_not_fire_and_is_not_waited_for() -> None:
    timers, fired = Timers(), list[int]()
    timer = timers.at(0.0, lambda: fired.append(1))
    timer.cancel()
    timer.cancel()
    assert timers.wait() == -1
    timers.fire()
    assert fired == []


def test_one_that_is_made_while_others_fire_waits_for_its_turn() -> None:
    timers, fired = Timers(), list[int]()

    def again() -> None:
        fired.append(1)
        timers.after(0.001, again)

    timers.at(0.0, again)
    timers.fire()
    assert fired == [1]


def test_no_wait_is_longer_than_epoll_can_take() -> None:
    timers = Timers()
    assert timers.wait() == -1
    timers.at(math.inf, lambda: None)
    timers.at(1e300, lambda: None)
    assert 0 < timers.wait() <= 3600
    timers.at(0.0, lambda: None)
    assert timers.wait() == 0


def test_cancelled_ones_do_not_pile_up() -> None:
    timers = Timers()
    kept = [timers.after(9999, lambda: None) for _ in range(100)]
    for _ in range(100_000):
        timers.after(9999, lambda: None).cancel()
    assert len(timers._heap) < 1000
    assert sum(timer.call is not None for timer in timers._heap) == len(kept)
