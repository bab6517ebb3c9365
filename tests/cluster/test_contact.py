"""For how long an agent has been silent, across the spawners that count it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest
from sim_loop import SimLoop

from ray_launcher.cluster.contact import Contact

LEASE = 30.0
#: Seconds after which a silence is noted for certain.
NOTED = 8.0


class Notes:
    """As `Registry` keeps them."""

    def __init__(self) -> None:
        self.by_name: dict[str, float] = {}
        self.made = asyncio.Event()

    def silence(self, name: str) -> float:
        return self.by_name.get(name, 0.0)

    def note_silence(self, name: str, seconds: float) -> None:
        self.by_name[name] = seconds
        self.made.set()


@pytest.fixture
def notes() -> Notes:
    return Notes()


def _contact(notes: Notes, *, found: bool = False) -> Contact:
    return Contact(notes, "agent", LEASE, found)  # type: ignore[arg-type]


def _play(plot: Coroutine[Any, Any, None], slow: float = 0.0) -> None:
    loop = SimLoop(slow)
    try:
        loop.run_until_complete(plot)
    finally:
        loop.close()


async def _keep_noted(contact: Contact, seconds: float) -> None:
    noting = asyncio.ensure_future(contact.keep_noted())
    await asyncio.sleep(seconds)
    noting.cancel()


def test_a_silence_is_noted_and_never_longer_than_it_is(notes: Notes) -> None:
    async def plot() -> None:
        await _keep_noted(_contact(notes), NOTED)
        assert NOTED - 3 < notes.silence("agent") <= NOTED

    _play(plot())


def test_an_agent_that_is_heard_of_leaves_no_note(notes: Notes) -> None:
    async def plot() -> None:
        contact = _contact(notes)
        noting = asyncio.ensure_future(contact.keep_noted())
        for _ in range(10):
            await asyncio.sleep(LEASE / 6)
            await contact.renew(0.0)
        noting.cancel()
        assert notes.by_name == {}

    _play(plot())


def test_another_spawner_counts_on(notes: Notes) -> None:
    async def plot() -> None:
        for spawner in range(3):
            await _keep_noted(_contact(notes, found=spawner > 0), NOTED)
        assert NOTED * 3 - 5 < _contact(notes, found=True).silence <= NOTED * 3

    _play(plot())


def test_a_new_agent_of_the_session_begins_anew(notes: Notes) -> None:
    async def plot() -> None:
        notes.note_silence("agent", 20.0)
        assert _contact(notes).silence == 0

    _play(plot())


def test_no_note_is_left_when_the_agent_gets_its_lease(notes: Notes) -> None:
    async def plot() -> None:
        contact = _contact(notes)
        await _keep_noted(contact, NOTED)
        await contact.renew(0.0)
        assert _contact(notes, found=True).silence == 0

    _play(plot())


def test_a_note_that_is_being_made_does_not_outlive_the_renewal(notes: Notes) -> None:
    async def plot() -> None:
        contact = _contact(notes)
        noting = asyncio.ensure_future(contact.keep_noted())
        await notes.made.wait()  # and the answer is on its way
        await contact.renew(0.0)
        noting.cancel()
        assert notes.silence("agent") == 0

    _play(plot(), slow=2.0)


def test_times_of_a_node_are_made_comparable_whatever_its_clock_shows(notes: Notes) -> None:
    async def plot() -> None:
        behind, ahead = _contact(notes), _contact(notes)
        await behind.renew(time.time() - 100)
        await ahead.renew(time.time() + 5000)
        assert behind.ours(1000.0) == pytest.approx(1100.0, abs=1)
        assert ahead.ours(6001.0) == pytest.approx(1001.0, abs=1)

    _play(plot())


def test_the_quickest_request_tells_the_difference_of_clocks(notes: Notes) -> None:
    async def plot() -> None:
        contact = _contact(notes)
        for late in (3.0, 0.0, 7.0):  # seconds on their way
            await contact.renew(time.time() - 100 - late)
        assert contact.ours(1000.0) == pytest.approx(1100.0, abs=1)

    _play(plot())
