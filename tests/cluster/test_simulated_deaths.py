"""The chain above the supervisor, simulated: whoever dies and whenever, each outcome arrives once and is true."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import pickle
import random
from collections.abc import Awaitable, Callable

import pytest
from sim_chain import World
from sim_loop import SimLoop

from ray_launcher import Exited, ExitPort, Failed, Placement, ProcExitResult, Signaled, decode_exit

#: Seconds, in the simulation, after which a port that is open is open for ever.
_PATIENCE = 120.0
_NEVER_STARTED = (
    *("already running", "on request", "no supervisor on the node"),
    *("was lost before the launch came there", "was lost before the gang came there", "did not start"),
    "no living node has the id",
)
#: Said of launches on their way when spawner and agent die, before there is a supervisor or with it.
_OR_NOWHERE = "the proc ran there, or nowhere"
_LOST = "the node's supervisor was lost, and the proc with it"
_LOST_NODE = "was lost: out of contact"


class Scenario:
    """Launches and requests at random, deaths among them, and what the ports told."""

    def __init__(self, world: World, seed: int, victims: str) -> None:
        self.world, self.seed = world, seed
        self._chance = random.Random(f"scenario {seed}")  # noqa: S311  # noise, no secret
        self._victims = victims.split()
        self._ids: dict[int, str] = {}
        self._endless: set[int] = set()
        self._restarts: dict[int, int] = {}  # how many a launch may have
        self._together: dict[int, set[int]] = {}  # the launches of the same gang, or itself
        self._asked: set[int] = set()  # to end
        self._told: dict[int, list[ProcExitResult]] = collections.defaultdict(list)

    async def play(self, deaths: int) -> None:
        for _ in range(deaths):
            for _ in range(self._chance.randrange(4)):
                self._launch()
            for number in self._open():
                if self._chance.random() < 0.2:
                    self._request(number)
            await self._wait_a_little()
            self._strike()
            await self._wait_a_little()
        for number in self._endless.intersection(self._open()):
            self._request(number)

    def begin(self) -> None:
        """A few launches that end by themselves."""
        for number in range(6):
            lifetime = self._chance.choice([0.0, 0.1, 3.0 * self._chance.random()])
            at, _ = self.world.launch(f"proc {number}", lifetime, self._chance.randrange(100))
            self._ids[at] = f"proc {number}"

    async def strike(self, deaths: int) -> None:
        for _ in range(deaths):
            await self._wait_a_little()
            self._strike()

    def check_history(self) -> None:
        """Each launch has one end that is true, which is remembered."""
        remembered = {past.key[1]: past for block in self.world.blocks.values() for past in pickle.loads(block)}
        for number in self._ids:
            ends = self.world.starts.get(("launcher", number), [])
            what = f"seed {self.seed}: launch {number}: {remembered.get(number)}, ends {ends}"
            assert len(ends) <= 1, what
            assert number in remembered, what
            assert _is_true(decode_exit(remembered[number].report), ends, restartable=False), what

    async def check(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._all_told(), _PATIENCE)
        for number, proc_id in self._ids.items():
            ends = self.world.starts.get(("launcher", number), [])
            attempts = self.world.attempts.get(("launcher", number), [])
            what = f"seed {self.seed}: launch {number} of {proc_id}: told {self._told[number]}, ends {ends}"
            assert len(self._told[number]) == 1, f"{what}; {self.world.kept()}"
            assert attempts == sorted(set(attempts)), f"{what}: an attempt began twice: {attempts}"
            assert all(attempt <= self._restarts[number] for attempt in attempts), f"{what}: too many: {attempts}"
            assert _is_true(self._told[number][0], ends, restartable=self._restarts[number] > 0), what
            assert self._may_be_lost(number), f"{what}: nothing below was struck"
            assert self._tried_enough(number, attempts), f"{what}: too few: {attempts}"
        assert not self.world.twins, f"seed {self.seed}: two of one id at a time: {self.world.twins}"
        await self._nothing_is_kept()

    def _may_be_lost(self, number: int) -> bool:
        """Spawners and agents take nothing with them, not even what is on its way."""
        kind = self._told[number][0].kind
        lost = isinstance(kind, Failed) and (kind.reason == _LOST or kind.reason.endswith(_OR_NOWHERE))
        return not lost or not {"supervisor", "node"}.isdisjoint(self._victims)

    def _tried_enough(self, number: int, attempts: list[int]) -> bool:
        kind = self._told[number][0].kind
        if isinstance(kind, Failed) or kind == Exited(0) or not self._together[number].isdisjoint(self._asked):
            return True
        return attempts[-1:] == [self._restarts[number]]

    async def _nothing_is_kept(self) -> None:
        """The ids are free again, and the last words of everybody have been heard."""
        await asyncio.sleep(40)  # nobody is dying any more, and who is lost is known to be
        for proc_id in sorted({*self._ids.values(), "one more"}):
            _, port = self.world.launch(proc_id, 0.0, 3)
            _ = port.ref
            result = await asyncio.wait_for(asyncio.wrap_future(port._future()), _PATIENCE)
            assert result.kind == Exited(3), f"seed {self.seed}: {proc_id} again: {result}; {self.world.kept()}"
        await asyncio.sleep(5)
        assert not any(self.world.kept().values()), f"seed {self.seed}: {self.world.kept()}"

    def _launch(self) -> None:
        if self._chance.random() < 0.1:
            gang_id = f"gang {len(self._ids)}"
            lifetimes = [self._lifetime() for _ in range(self._chance.randint(1, 4))]
            restarts = self._chance.choice([0, 0, 1, 2])
            codes = [self._chance.choice([0, 0, 0, 7]) for _ in lifetimes]
            ranks = self.world.launch_gang(gang_id, lifetimes, codes, restarts)
            for rank, (lifetime, (number, port)) in enumerate(zip(lifetimes, ranks, strict=True)):
                self._launched(f"{gang_id}/{rank}", lifetime, number, port, restarts)
                self._together[number] = {each for each, _ in ranks}
            return
        proc_id = f"proc {self._chance.choice([len(self._ids) + 10, self._chance.randrange(3)])}"
        lifetime, restarts = self._lifetime(), self._chance.choice([0, 0, 0, 0, 1, 2])
        number, port = self.world.launch(proc_id, lifetime, self._chance.randrange(100), restarts)
        self._launched(proc_id, lifetime, number, port, restarts)

    def _lifetime(self) -> float | None:
        return self._chance.choice([0.0, 0.001, 0.1, 2 * self._chance.random(), None])

    def _launched(self, proc_id: str, lifetime: float | None, number: int, port: ExitPort, restarts: int) -> None:
        self._ids[number], self._restarts[number], self._together[number] = proc_id, restarts, {number}
        if lifetime is None:
            self._endless.add(number)
        port._future().add_done_callback(lambda future: self._told[number].append(future.result()))
        if self._chance.random() < 0.2:
            when = self._chance.choice([0.0, 0.01, 1.0]) * self._chance.random()
            asyncio.get_running_loop().call_later(when, lambda: port.ref)

    def _open(self) -> list[int]:
        return [number for number in self._ids if not self._told[number]]

    def _request(self, number: int) -> None:
        self._asked.add(number)
        self.world.request(self._ids[number], number, self._chance.choice([None, 0.0, 0.5, 2.0]))

    def _strike(self) -> None:
        struck = [victim for victim in self._victims if self._chance.random() < 0.6]
        if "node" in struck:
            self.world.lose_node(self._chance.randrange(2))
        if "spawner" in struck:
            self.world.spawner.sigkill()
        for agent in self.world.agents.values():
            if "agent" in struck and self._chance.random() < 0.7:
                agent.sigkill()
        for supervisor in self.world.supervisors.values():
            if "supervisor" in struck and self._chance.random() < 0.7:
                supervisor.kill(guarded=self._chance.random() < 0.5)

    async def _wait_a_little(self) -> None:
        await asyncio.sleep(self._chance.choice([0.0, 0.0, 0.001, 0.01, 0.1, 2.0]) * self._chance.random())

    async def _all_told(self) -> None:
        while self._open():  # noqa: ASYNC110  # in simulated time
            await asyncio.sleep(0.1)


def _is_true(result: ProcExitResult, ends: list[bytes], *, restartable: bool) -> bool:
    kind = result.kind
    if isinstance(kind, Exited):
        return ends[-1:] == [b"exited %d" % kind.code]
    if isinstance(kind, Signaled):
        return ends[-1:] == [b"signaled %d" % kind.signal]
    assert isinstance(kind, Failed)
    if kind.reason == _LOST or kind.reason.endswith(_OR_NOWHERE) or _LOST_NODE in kind.reason:
        return all(end for end in ends)  # whatever it was, it is over
    never = all(ends) if restartable else not ends
    return never and any(words in kind.reason for words in _NEVER_STARTED)


def _run(seed: int, *, deaths: int, victims: str, trouble: float = 0.0, slow: float = 0.001) -> None:
    async def plot(world: World) -> None:
        scenario = Scenario(world, seed, victims)
        await scenario.play(deaths)
        await scenario.check()

    _play(plot, seed, trouble, slow, detached=seed % 2 == 1)


def _play(
    plot: Callable[[World], Awaitable[None]],
    seed: int = 0,
    trouble: float = 0.0,
    slow: float = 0.001,
    *,
    detached: bool = False,
) -> None:
    async def run() -> None:
        await plot(World(loop, seed, trouble, detached=detached))

    loop = SimLoop(slow)
    try:
        loop.run_until_complete(run())
    finally:
        assert not loop.raised, f"seed {seed}: {loop.raised}"
        loop.bury()
        loop.close()


def _cases(first: int, count: int, victims: str) -> None:
    """Up to five deaths in each; some calls are asked twice; in some the GCS takes seconds to answer."""
    for seed in range(first, first + count):
        trouble, slow = (0.0, 0.05, 0.3)[seed % 3], 2.0 if seed % 5 == 4 else 0.001
        _run(seed, deaths=seed % 6, victims=victims, trouble=trouble, slow=slow)


_NODES = ["node", "node spawner", "node spawner agent supervisor"]
_PAIRS = ["spawner agent", "spawner supervisor", "agent supervisor"]
_ALL = "spawner agent supervisor"


@pytest.mark.parametrize("victims", ["", "spawner", "agent", "supervisor", *_PAIRS, _ALL, *_NODES])
def test_outcomes_are_told_once_and_are_true(victims: str) -> None:
    _cases(0, 30, victims)


@pytest.mark.parametrize("victims", ["spawner", "spawner agent", _ALL])
def test_without_their_launcher_launches_of_a_detached_session_run_once_and_are_remembered(victims: str) -> None:
    async def plot(world: World) -> None:
        scenario = Scenario(world, world.seed, victims)
        scenario.begin()
        await _until(lambda: len(world.docket) == 6)
        world.abandon()
        await scenario.strike(3)
        await asyncio.sleep(60)
        scenario.check_history()
        assert world.docket == {}

    for seed in range(40):
        _play(plot, seed, 0.05 * (seed % 2), detached=True)


async def _until(what: Callable[[], object]) -> None:
    while not what():  # noqa: ASYNC110  # in simulated time
        await asyncio.sleep(0.001)


async def _told(port: ExitPort) -> ProcExitResult:
    return await asyncio.wait_for(asyncio.wrap_future(port._future()), _PATIENCE)


def test_what_an_agent_forgot_is_not_started_again_by_any_later_spawner() -> None:
    async def plot(world: World) -> None:
        first, second = (Placement(node_id=node.node_id) for node in world.nodes)
        for placement in (first, second):
            await _told(world.launch("warm", 0.0, placement=placement)[1])
        number, port = world.launch("once", 0.5, placement=first)
        await _until(lambda: ("launcher", number) in world.starts)
        world.spawner.sigkill()
        [agent] = world.agents_on(world.nodes[0])
        agent.sigkill()  # and with it goes the last who knows
        world.kill_supervisors(world.nodes[0])
        world.lose_node(1)  # for which the next spawner waits before it decides anything
        await asyncio.sleep(3)
        agent.sigkill()
        await asyncio.sleep(3)
        world.spawner.sigkill()
        assert isinstance((await _told(port)).kind, Failed)
        assert len(world.starts["launcher", number]) == 1

    _play(plot)


def test_what_has_not_come_to_a_supervisor_is_not_lost_with_its_agent() -> None:
    async def plot(world: World) -> None:
        number, port = world.launch("once", 0.5, 3, placement=Placement(node_id=world.nodes[0].node_id))
        await _until(lambda: world.supervisors)  # it is being started, which takes two seconds
        [agent] = world.agents_on(world.nodes[0])
        agent.sigkill()
        world.kill_supervisors(world.nodes[0])
        assert (await _told(port)).kind == Exited(3)
        assert len(world.starts["launcher", number]) == 1

    _play(plot, slow=2.0)


def test_what_ran_on_a_lost_node_is_not_started_again_by_the_next_spawner() -> None:
    async def plot(world: World) -> None:
        launched = [world.launch(f"proc {index}", None, placement=Placement()) for index in range(4)]
        await _until(lambda: len(world.starts) == len(launched))
        links = world.spawner.instance._links.by_node
        lost = links[world.nodes[1].node_id]
        world.lose_node(1)
        world.spawner.lag = 0.1
        await _until(lambda: lost.lost)
        await asyncio.sleep(0.05)
        world.spawner.sigkill()  # before anybody has heard of it
        world.spawner.lag = 0.0
        await asyncio.sleep(40)
        assert {len(ends) for ends in world.starts.values()} == {1}
        for number, _ in launched:
            world.request(f"proc {number}", number, None)
        kinds = [type((await _told(port)).kind) for _, port in launched]
        assert sorted(kinds, key=str) == [Failed, Failed, Signaled, Signaled]

    _play(plot)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("victims", [*_PAIRS, _ALL, *_NODES[1:]])
def test_outcomes_are_told_once_and_are_true_in_ten_thousand_cases(victims: str, part: int) -> None:
    _cases(1000 * (part + 1), 500, victims)
