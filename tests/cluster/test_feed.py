"""What an agent tells, and to whom: a poll that has been asked again must take no news with it."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from ray_launcher.cluster.feed import Feed
from ray_launcher.cluster.wire import Started

NEWS = Started("token", 7, 0.0)


class Pause:
    """Lasts until `over`."""

    def __init__(self) -> None:
        self.begun, self.over = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self.begun.set()
        await self.over.wait()


async def _none() -> None:
    pass


def _told(feed: Feed) -> list[object]:
    return list(pickle.loads(feed.tell()).items)


def test_a_poll_returns_when_there_is_news() -> None:
    async def play() -> None:
        feed = Feed()
        poll = asyncio.ensure_future(feed.fresh(feed.begin(), _none))
        await asyncio.sleep(0)
        feed.add(NEWS)
        assert await poll
        assert _told(feed) == [NEWS]

    asyncio.run(play())


@pytest.mark.parametrize("what", ["asked again", "joined by somebody else"])
def test_one_that_pauses_takes_no_news_when_it_is(what: str) -> None:
    async def play() -> None:
        feed, pause = Feed(), Pause()
        join = feed.begin()
        feed.add(NEWS)
        first = asyncio.ensure_future(feed.fresh(join, pause))
        await pause.begun.wait()
        if what == "asked again":
            second = asyncio.ensure_future(feed.fresh(join, _none))
            await asyncio.sleep(0)
        else:
            second = asyncio.ensure_future(feed.fresh(feed.begin(), _none))
            feed.add(NEWS)
        pause.over.set()
        assert not await first
        assert await second
        assert _told(feed) == [NEWS]

    asyncio.run(play())


def test_one_whose_news_another_call_has_told_waits_on() -> None:
    async def play() -> None:
        feed, pause = Feed(), Pause()
        feed_join = feed.begin()
        feed.add(NEWS)
        poll = asyncio.ensure_future(feed.fresh(feed_join, pause))
        await pause.begun.wait()
        assert _told(feed) == [NEWS]
        pause.over.set()
        done, _ = await asyncio.wait((poll,), timeout=0.05)
        assert not done
        feed.add(NEWS)
        assert await poll

    asyncio.run(play())


def test_hush_returns_when_the_calls_that_wait_have_been_answered() -> None:
    async def play() -> None:
        feed = Feed()
        join, order = feed.begin(), list[str]()

        async def poll() -> None:
            with feed.answering():
                assert not await feed.fresh(join, _none)
            order.append("poll")

        polling = asyncio.ensure_future(poll())
        await asyncio.sleep(0)
        await feed.hush()
        order.append("hush")
        await polling
        assert order == ["poll", "hush"]

    asyncio.run(play())


def test_hush_returns_at_once_when_none_does() -> None:
    asyncio.run(Feed().hush())
