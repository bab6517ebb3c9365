"""Turns: messages take place in their sender's order, in whatever order they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_launcher.turns import Turns


class Desk:
    """Messages that take their turn, say so, and go on to more steps as a spawner's launch does."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.log: list[tuple[str, int]] = []

    async def message(self, sender: str, number: int) -> None:
        await self.turns.wait(sender, number)
        self.turns.done(sender, number)
        self.log.append((sender, number))  # after done: nobody may come in between
        await asyncio.sleep(0)

    def of(self, sender: str) -> list[int]:
        return [number for who, number in self.log if who == sender]


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 10))


async def a_moment() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@given(st.permutations(range(8)), st.data())
def test_each_sender_has_its_own_order_whatever_arrives_when(arrival: list[int], data: st.DataObject) -> None:
    async def main() -> None:
        desk = Desk()
        tasks = []
        for index in arrival:
            sender, number = "ab"[index % 2], index // 2
            tasks.append(asyncio.create_task(desk.message(sender, number)))
            if data.draw(st.booleans()):
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert desk.of("a") == desk.of("b") == [0, 1, 2, 3]

    run(main())


@given(st.permutations(range(8)), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)), st.data())
def test_messages_that_are_cancelled_or_never_come_block_nobody(
    arrival: list[int], cancelled: set[int], skipped: set[int], data: st.DataObject
) -> None:
    async def main() -> None:
        desk = Desk()
        tasks: dict[int, asyncio.Task[None]] = {}
        for number in arrival:
            if number in skipped:
                desk.turns.done("a", number)
            else:
                tasks[number] = asyncio.create_task(desk.message("a", number))
            if data.draw(st.booleans()):
                await asyncio.sleep(0)
            if number in cancelled & set(tasks):
                tasks[number].cancel()
                if not data.draw(st.booleans()):  # cancelled before its first step, it never waits: then it is skipped
                    await asyncio.sleep(0)
                desk.turns.done("a", number)
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert desk.log == sorted(desk.log)
        assert set(desk.of("a")) >= set(range(8)) - cancelled - skipped

    run(main())


def test_a_turn_that_is_there_is_taken_without_suspending() -> None:
    turns = Turns()
    for number in range(3):
        with pytest.raises(StopIteration):
            turns.wait("a", number).send(None)
        turns.done("a", number)


def test_a_message_waits_until_every_earlier_one_is_done() -> None:
    async def main() -> None:
        desk = Desk()
        late = asyncio.create_task(desk.message("a", 2))
        await a_moment()
        desk.turns.done("a", 1)
        await a_moment()
        assert desk.log == []
        desk.turns.done("a", 0)
        await late
        assert desk.log == [("a", 2)]

    run(main())


def test_the_same_message_may_be_declared_done_again() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.message("a", 0)
        desk.turns.done("a", 0)
        desk.turns.done("a", 0)
        next_but_one = asyncio.create_task(desk.message("a", 2))
        await a_moment()
        assert desk.log == [("a", 0)]
        await desk.message("a", 1)
        await next_but_one

    run(main())


def test_a_cancelled_message_passes_its_turn_on_at_once() -> None:
    async def main() -> None:
        desk = Desk()
        second, third = (asyncio.create_task(desk.message("a", number)) for number in (1, 2))
        await a_moment()
        second.cancel()
        await a_moment()
        assert desk.log == []
        await desk.message("a", 0)
        await third
        assert desk.log == [("a", 0), ("a", 2)]

    run(main())


def test_memory_of_early_messages_is_given_back() -> None:
    turns = Turns()
    for number in reversed(range(100)):
        turns.done("a", number)
    assert turns._early["a"] == set()
    assert turns._next["a"] == 100
