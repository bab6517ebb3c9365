"""Monarch on a Ray cluster: actors in four procs on two hosts estimate pi."""

import random

from monarch.actor import Actor, current_rank, endpoint

from ray_launcher.integrations.monarch import RayJob

DARTS = 100_000


class Darts(Actor):
    """Throws darts at a square, and counts those in the circle."""

    @endpoint
    async def throw(self, count: int) -> int:
        """How many of `count` are in it."""
        dice = random.Random(current_rank().rank)  # noqa: S311  # the same every time
        return sum(dice.random() ** 2 + dice.random() ** 2 < 1 for _ in range(count))


job = RayJob({"players": 2}, strategy="SPREAD")  # one host per node, if there are two
try:
    procs = job.state(cached_path=None).players.spawn_procs(per_host={"procs": 2})
    hits = [count for _, count in procs.spawn("darts", Darts).throw.call(DARTS).get()]
    print(f"{len(hits)} actors: pi is about {4 * sum(hits) / (len(hits) * DARTS):.3f}")
finally:
    job.kill()
