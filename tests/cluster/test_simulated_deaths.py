"""The chain above the supervisor, simulated: whoever dies and whenever, each outcome arrives once and is true."""

from __future__ import annotations

import asyncio
import collections
import random
from typing import Any

import pytest
from sim_chain import World
from sim_loop import SimLoop

from ray_launcher import Exited, Failed, ProcExitResult, Signaled

#: Seconds, in the simulation, after which a port that is open is open for ever.
_PATIENCE = 120.0
_NEVER_STARTED = ("already running", "on request", "no supervisor on the node")
_LOST = "the node's supervisor was lost, and the proc with it"


async def _scenario(
    loop: SimLoop, seed: int, *, deaths: int, victims: str = "spawner agent", trouble: float = 0.0
) -> None:
    chance = random.Random(f"scenario {seed}")  # noqa: S311  # noise, no secret
    world = World(loop, seed, trouble=trouble)
    told: dict[int, list[ProcExitResult]] = collections.defaultdict(list)
    codes: dict[int, int | None] = {}
    ids: dict[int, str] = {}
    asked: set[int] = set()
    supervisor_died = False

    def launch(proc_id: str) -> None:
        lifetime = chance.choice([0.0, 0.001, 0.1, 2 * chance.random(), None])
        code = chance.randrange(100)
        number, port = world.launch(proc_id, lifetime, code)
        codes[number], ids[number] = None if lifetime is None else code, proc_id
        port._future().add_done_callback(lambda future: told[number].append(future.result()))
        if chance.random() < 0.2:
            loop.call_later(chance.choice([0.0, 0.01, 1.0]) * chance.random(), lambda: port.ref)

    def request(number: int) -> None:
        asked.add(number)
        world.request(ids[number], number, chance.choice([None, 0.0, 0.5, 2.0]))

    def strike() -> None:
        nonlocal supervisor_died
        struck = [victim for victim in victims.split() if chance.random() < 0.6]
        if "spawner" in struck:
            world.spawner.sigkill()
        for agent in world.agents.values():
            if "agent" in struck and chance.random() < 0.7:
                agent.sigkill()
        for supervisor in world.supervisors.values():
            if "supervisor" in struck and chance.random() < 0.7:
                supervisor_died = True
                supervisor.kill(guarded=chance.random() < 0.5)

    for _ in range(deaths):
        for _ in range(chance.randrange(4)):
            launch(f"proc {chance.randrange(3)}" if chance.random() < 0.5 else f"proc {len(ids) + 10}")
        for number in list(ids):
            if not told[number] and chance.random() < 0.2:
                request(number)
        await asyncio.sleep(chance.choice([0.0, 0.0, 0.001, 0.01, 0.1, 2.0]) * chance.random())
        strike()
        await asyncio.sleep(chance.choice([0.0, 0.0, 0.001, 0.01, 0.1, 2.0]) * chance.random())
    for number, code in codes.items():
        if code is None and not told[number]:
            request(number)
    give_up = loop.time() + _PATIENCE
    while len([number for number in ids if told[number]]) < len(ids) and loop.time() < give_up:
        await asyncio.sleep(0.1)
    for number, proc_id in ids.items():
        what = f"seed {seed}: launch {number} of {proc_id}, code {codes[number]}, asked {number in asked}"
        ends = world.starts.get(("launcher", number), [])
        assert len(told[number]) == 1, f"{what}: told {told[number]}, ends {ends}; {world.kept()}"
        assert len(ends) <= 1, f"{what}: started {len(ends)} times: {ends}"
        _check(told[number][0], ends, supervisor_died, what)
    await asyncio.sleep(20)  # nobody is dying any more
    await _settle(world, f"seed {seed}")
    assert not world.twins, f"seed {seed}: two of one id at a time: {world.twins}"
    assert not loop.raised, f"seed {seed}: {loop.raised}"


def _check(result: ProcExitResult, ends: list[bytes], supervisor_died: bool, what: str) -> None:
    what = f"{what}: {result}, but {ends}"
    if isinstance(result.kind, Failed):
        lost = supervisor_died and result.kind.reason == _LOST
        refused = not ends and any(words in result.kind.reason for words in _NEVER_STARTED)
        assert lost or refused, what
    elif isinstance(result.kind, Exited):
        assert ends == [b"exited %d" % result.kind.code], what
    else:
        assert isinstance(result.kind, Signaled)
        assert ends == [b"signaled %d" % result.kind.signal], what


async def _settle(world: World, what: str) -> None:
    """The ids are free again, and nothing is kept, once the last words of everybody have been heard."""
    for proc_id in sorted({f"proc {n}" for n in range(12)}):
        _, port = world.launch(proc_id, 0.0, 3)
        result = await asyncio.wait_for(asyncio.wrap_future(port._future()), _PATIENCE)
        assert result.kind == Exited(3), f"{what}: {proc_id} launched again: {result}; {world.kept()}"
    await asyncio.sleep(5)
    kept = world.kept()
    assert not any(map(bool, _leaves(kept))), f"{what}: {kept}"


def _leaves(kept: dict[str, object]) -> list[object]:
    return [each for value in kept.values() for each in (value if isinstance(value, list) else [value])]


def _run(seed: int, **options: Any) -> None:
    loop = SimLoop()
    try:
        task = loop.create_task(_scenario(loop, seed, **options))
        loop.run_until_complete(task)
    finally:
        loop.bury()
        loop.close()


@pytest.mark.parametrize("seed", range(30))
def test_outcomes_are_told_once_and_are_true(seed: int) -> None:
    for part in range(10):
        _run(1000 * seed + part, deaths=part % 5)
