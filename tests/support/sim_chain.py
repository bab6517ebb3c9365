"""The chain from a launcher's mail down to the supervisor, simulated in one loop: see `sim_loop`.

Real: mail, desk, spawner, links, agents, keepers. Made up: Ray, the supervisors, and the procs. The modules are
private copies with other globals, since a real Ray may be in use in the same process.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib.util
import pickle
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sim_loop import Actor, SimLoop, current_name, outside

from ray_launcher import LaunchOptions, Placement
from ray_launcher.cluster.actors import agent_actor, spawner_actor
from ray_launcher.cluster.lease import Wish
from ray_launcher.cluster.nodes import Node, Nodes
from ray_launcher.cluster.wire import SessionInfo
from ray_launcher.node import client as real_client
from ray_launcher.node.protocol import pack, unpack
from ray_launcher.node.reports import Reports, failed
from ray_launcher.node.spec import Spec
from ray_launcher.port import ExitPort
from ray_launcher.ranks import Member, Shape
from ray_launcher.spawner import desk_of

SIGNALED, EXITED = b"signaled", b"exited"


def _copy(name: str, **replaced: Any) -> Any:
    """A module of its own, with some of its globals replaced."""
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    spec = importlib.util.spec_from_file_location(f"sim.{name}", found.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"sim.{name}"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    vars(module).update(replaced)
    return module


class _NoMetrics:
    """Nothing is exported."""

    def __init__(self, *_: object) -> None:
        self.sought = self.changed = self.heard_of_end = self.restarted = lambda *_: None

    async def close(self) -> None:
        pass


class World:
    """Two nodes, a session, its launcher; what procs there have been, and what became of them."""

    def __init__(self, loop: SimLoop, seed: int, trouble: float, *, detached: bool = False) -> None:
        self.loop, self.chance = loop, random.Random(seed)  # noqa: S311  # noise, no secret
        self.seed, self._trouble = seed, trouble
        self.starts: dict[tuple[str, int], list[bytes]] = {}  # by the launch's key: what each start ended with
        self.attempts: dict[tuple[str, int], list[int]] = {}  # the same: which attempt each start was
        self.procs: list[Proc] = []
        self.twins: list[str] = []  # ids of procs that were started while another of that id ran
        self.supervisors: dict[Path, Supervisor] = {}
        self.orphans: list[Proc] = []  # their supervisor and its guard were killed
        self.agents: dict[str, Actor] = {}
        self.down: set[str] = set()  # ids of nodes that are lost
        self.registry: dict[str, Node] = {}
        self.serving: set[str] = set()
        self.losses: set[str] = set()  # agents that owe the ends of a lost supervisor's procs
        self.silences: dict[str, float] = {}
        self.leases: dict[str, _Lease] = {}
        self.gangs: dict[str, bytes] = {}
        self.blocks: dict[int, bytes] = {}
        self.docket: dict[tuple[str, int], bytes] = {}
        self.generation = 0
        self.nodes = [Node(f"node-{letter}", "10.0.0.1", {}, 2.0) for letter in "ab"]
        self._load()
        session = SessionInfo("sim", grace=1.0, lease=30.0, detached=detached, owner="launcher")
        self._begun = self.nodes[0], f"sim-{self.nodes[0].node_id}-first"
        self.spawner = Actor(
            spawner_actor("sim"), functools.partial(self._make_spawner, session), self.chance, trouble=trouble
        )
        self._start_agent(session, {}, *self._begun, again=False)
        mail = type("Mail", (self._mail_module.Mail,), {"here": True, "connected": property(lambda mail: mail.here)})
        self.mail: Any = mail(self.spawner, "launcher")

    def launch(
        self,
        proc_id: str,
        lifetime: float | None,
        code: int = 0,
        max_restarts: int = 0,
        placement: Placement | None = None,
    ) -> tuple[int, ExitPort]:
        """A proc that ends by itself after `lifetime` seconds; None: never. placement: None for one at random."""
        opts = LaunchOptions(
            program="any",
            args=[repr(lifetime), str(code)],
            placement=placement or self._placement(),
            max_restarts=max_restarts,
            restart_delay=self.chance.choice([0.0, 0.5]),
        )
        [(number, port)] = self.mail.launch([pickle.dumps((proc_id, opts))])
        return number, port

    def _placement(self) -> Placement:
        if self.chance.random() < 0.3:
            return Placement(node_id=self.chance.choice(self.nodes).node_id)
        return Placement(num_cpus=self.chance.choice([0, 0, 1, 2]))

    def launch_gang(
        self, gang_id: str, lifetimes: list[float | None], codes: list[int], max_restarts: int
    ) -> list[tuple[int, ExitPort]]:
        """Ranks that live that long; on two nodes if they are an even number. They hold something, or nothing."""
        nnodes = 2 - len(lifetimes) % 2
        uid, nproc = f"{gang_id} {self.chance.random()}", len(lifetimes) // nnodes
        shape = Shape(uid, gang_id, nnodes, nproc, max_restarts=max_restarts, restart_delay=0.2)
        placement = Placement(num_cpus=self.chance.choice([0, 1]))
        payloads = []
        for rank, lifetime in enumerate(lifetimes):
            opts = LaunchOptions(program="any", args=[repr(lifetime), str(codes[rank])], placement=placement)
            payloads.append(pickle.dumps((f"{gang_id}/{rank}", opts, Member(shape, rank))))
        return self.mail.launch(payloads)  # type: ignore[no-any-return]

    def request(self, proc_id: str, number: int, timeout: float | None) -> None:
        self.mail.send("request", (proc_id, (number,), timeout), about=(number,))

    def abandon(self) -> None:
        """The launcher is gone."""
        self.mail.here = False

    def kept(self) -> dict[str, object]:
        """What every layer keeps for the launcher."""
        if self.spawner.instance is None:
            return {}
        desk = desk_of(self.spawner.instance).account("launcher")
        agents = [agent.instance for agent in self.agents.values() if agent.instance is not None]
        return {
            "open": len(self.mail._ledger.open),
            "refs": len(self.mail._ledger.refs),
            "expected": len(desk._expected),
            "outcomes": len(desk._outcomes),
            "tasks": len(desk._tasks),
            "roster": sorted(self.spawner.instance._roster.living),
            "launches": [token for link in self.spawner.instance._links.by_node.values() for token in link.launches],
            "leases": list(self.leases),
            "docket": list(self.docket),
            "gangs": [*self.gangs, *self.spawner.instance._gangs._teams],
            "attempts": list(self.spawner.instance._gangs._attempts),
            "running": [token for agent in agents for token in agent._keeper.running],
        }

    # -- Ray ------------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        chain = "ray_launcher.cluster."
        clock = types.SimpleNamespace(monotonic=self.loop.time, time=self.loop.time)
        self._ray = types.SimpleNamespace(kill=lambda actor: actor.kill(), get_runtime_context=self._context)
        registry = functools.partial(_Registry, self)
        client = types.SimpleNamespace()
        vars(client).update(
            vars(real_client),
            start=lambda directory, *_: self._start_supervisor(directory),
            make_directory=lambda _: None,
            remove_directory=lambda _: None,
            last_words=lambda _: "",
            wait_until_free=lambda *_: True,
        )
        keeper = _copy(
            chain + "keeper",
            Client=functools.partial(_Client, self),
            client=client,
            mop_up=self._mop_up,
            time=types.SimpleNamespace(monotonic_ns=lambda: int(self.loop.time() * 1e9)),
            remove_spare=lambda *_: None,
        )
        keeper.Client.connect = functools.partial(_Client.connect, self)
        specs = _copy(chain + "specs", base_environ=lambda *_: {}, masks=lambda _: {})
        self._agent_module = _copy(
            chain + "agent",
            ray=self._ray,
            is_restarted=lambda: self._again,
            Keeper=keeper.Keeper,
            client=client,
            time=clock,
            raylet_environ=lambda _: {},
            Specs=specs.Specs,
            Registry=registry,
            find=self._find,
            is_alive=lambda node: node.node_id not in self.down,
            return_all=lambda _, spared: None if spared else self.leases.clear(),
            _watched=lambda _: lambda: False,
            Ports=lambda: types.SimpleNamespace(keep=lambda _: 7, give=lambda _: None),
            ray_node=lambda: types.SimpleNamespace(get_logs_dir_path=lambda: "/nonexistent/logs"),
        )
        link = _copy(
            chain + "link",
            ray=self._ray,
            Registry=registry,
            is_alive=lambda node: node.node_id not in self.down,
            find=self._find,
            start_agent=self._start_agent,
        )
        nodes = functools.partial(Nodes, fetch=lambda: self.nodes, clock=self.loop.time)
        leases = _copy(
            chain + "leases",
            ask=lambda _, wish: _Lease(self, wish),
            leases_of=lambda _: list(self.leases.values()),
            return_all=lambda _: self.leases.clear(),
            ThreadPoolExecutor=lambda *_: types.SimpleNamespace(submit=lambda call: call()),
        )
        links = _copy(chain + "links", Link=link.Link, Nodes=nodes)
        self._spawner_module = _copy(
            chain + "spawner",
            is_restarted=lambda: self._again,
            Registry=registry,
            Links=links.Links,
            Owner=link.Owner,
            Leases=leases.Leases,
            Metrics=_NoMetrics,
        )
        self._mail_module = _copy("ray_launcher.mail", run_soon=self._run_soon)

    def _run_soon(self, call: Callable[[], object], after: float = 0.0) -> None:
        self.loop.call_later(after + self.chance.choice([0.0, 0.001, 0.01]), call)

    def _context(self) -> Any:
        return types.SimpleNamespace(runtime_env={}, current_actor=self._find(current_name()))

    def _make_spawner(self, session: SessionInfo, again: bool) -> Any:
        self._again = again
        return self._spawner_module.ClusterSpawner(session, {}, self._begun)

    def _make_agent(self, session: SessionInfo, name: str, again: bool) -> Any:
        self._again = again
        return self._agent_module.Agent(session, name)

    def _start_agent(self, session: SessionInfo, _env: object, node: Node, name: str, again: bool) -> Actor:
        if name not in self.agents:
            make = functools.partial(self._make_agent, session, name)
            self.agents[name] = outside(lambda: Actor(agent_actor(name), make, self.chance, trouble=self._trouble))
        if node.node_id in self.down:
            self.agents[name].kill()
        return self.agents[name]

    def _find(self, name: str) -> Actor | None:
        actor = self.spawner if name == spawner_actor("sim") else self.agents.get(name.removeprefix("agent-"))
        return None if actor is None or actor.gone else actor

    # -- nodes ----------------------------------------------------------------------------------------------------

    def agents_on(self, node: Node) -> list[Actor]:
        return [agent for name, agent in self.agents.items() if name.startswith(f"sim-{node.node_id}-")]

    def kill_supervisors(self, node: Node) -> None:
        """With all that they have."""
        for directory, supervisor in self.supervisors.items():
            if directory.name.startswith(f"sim-{node.node_id}-"):
                supervisor.kill(guarded=True)

    def lose_node(self, index: int) -> None:
        """With all that is on it; another comes in its place."""
        lost = self.nodes[index]
        self.down.add(lost.node_id)
        for agent in self.agents_on(lost):
            agent.kill()
        self.kill_supervisors(lost)
        self.nodes[index] = Node(f"node-{len(self.down) + 1}", "10.0.0.1", {}, 2.0)

    def _start_supervisor(self, directory: Path) -> None:
        self.loop._clock.now += self.chance.random() * 0.001
        self.supervisors[directory] = outside(lambda: Supervisor(self))

    def _mop_up(self, prefix: bytes, _timeout: float) -> bool:
        for proc in list(self.orphans):
            if any(item.startswith(b"RAY_LAUNCHER_ID=" + prefix) for item in proc.spec.environ):
                self.orphans.remove(proc)
                proc.end(b"mopped up")
        return True


class _Lease:
    """Of one bundle, somewhere. It is there at once, or after a while."""

    def __init__(self, world: World, wish: Wish) -> None:
        self._world, self.wish = world, wish
        self.name = f"lease-{world.chance.random()}"
        self.nodes: tuple[str, ...] = ()
        self.accelerators: tuple[dict[str, list[str]], ...] = ()
        world.leases[self.name] = self

    @property
    def filled(self) -> bool:
        return bool(self.nodes)

    async def fill(self, *_: object) -> None:
        await asyncio.sleep(self._world.chance.choice([0.0, 0.01, 1.0]))
        count = len(self.wish.bundles)
        self.nodes = tuple(self._world.chance.choice(self._world.nodes).node_id for _ in range(count))
        self.accelerators = ({},) * count

    def give_back(self) -> None:
        self._world.leases.pop(self.name, None)


class _Registry:
    def __init__(self, world: World, _session: str) -> None:
        self._world = world

    def agents(self) -> dict[str, Node]:
        return dict(self._world.registry)

    def add(self, name: str, node: Node) -> None:
        self._world.registry[name] = node

    def remove(self, name: str) -> None:
        self._world.registry.pop(name, None)
        self._world.silences.pop(name, None)

    def note_serving(self, name: str) -> None:
        self._world.serving.add(name)

    def has_served(self, name: str) -> bool:
        return name in self._world.serving

    def note_loss(self, name: str, *, owed: bool) -> None:
        (self._world.losses.add if owed else self._world.losses.discard)(name)

    def has_loss(self, name: str) -> bool:
        return name in self._world.losses

    def silence(self, name: str) -> float:
        return self._world.silences.get(name, 0.0)

    def note_silence(self, name: str, seconds: float) -> None:
        self._world.silences[name] = seconds

    def next_generation(self) -> int:
        self._world.generation += 1
        return self._world.generation

    def gangs(self) -> list[bytes]:
        return list(self._world.gangs.values())

    def save_gang(self, uid: str, record: bytes) -> None:
        self._world.gangs[uid] = record

    def drop_gang(self, uid: str) -> None:
        self._world.gangs.pop(uid, None)

    def blocks(self) -> dict[int, bytes]:
        return dict(self._world.blocks)

    def save_block(self, number: int, block: bytes) -> None:
        self._world.blocks[number] = block

    def drop_block(self, number: int) -> None:
        del self._world.blocks[number]

    def launches(self) -> dict[tuple[str, int], bytes]:
        return dict(self._world.docket)

    def save_launch(self, key: tuple[str, int], payload: bytes) -> None:
        self._world.docket[key] = payload

    def drop_launch(self, key: tuple[str, int]) -> None:
        del self._world.docket[key]

    def clear(self) -> None:
        self._world.registry.clear()


class Proc:
    """One start of a program."""

    def __init__(self, world: World, spec: Spec, exited: Callable[[Proc, bytes, int], None]) -> None:
        self.spec, self._exited = spec, exited
        self.proc_id, key, _, member, *_ = pickle.loads(spec.note)
        self._ends = world.starts.setdefault(key, [])
        world.attempts.setdefault(key, []).append(0 if member is None else member.attempt)
        world.twins += [self.proc_id for proc in world.procs if proc.proc_id == self.proc_id and proc.alive]
        world.procs.append(self)
        self._index = len(self._ends)
        self._ends.append(b"")
        lifetime, code = spec.argv[1:]
        if lifetime != b"None":
            world.loop.call_later(float(lifetime), self.end, EXITED, int(code))

    @property
    def alive(self) -> bool:
        return not self._ends[self._index]

    def end(self, kind: bytes, value: int = 0) -> None:
        if self.alive:
            self._ends[self._index] = kind + b" %d" % value
            self._exited(self, kind, value)


class Supervisor:
    """As the real one, from the agent's side."""

    def __init__(self, world: World) -> None:
        self._world, self._reports = world, Reports(int(world.loop.time() * 1e9))
        self._procs: dict[bytes, Proc] = {}
        self._client: _Client | None = None
        self.alive = True

    def kill(self, guarded: bool) -> None:
        """SIGKILL; with its guard: its procs live on until somebody finds them."""
        self.alive = False
        if guarded:
            for proc in list(self._procs.values()):
                proc.end(b"guard")
        else:
            self._world.orphans += self._procs.values()
        if self._client is not None:
            self._client.lose()

    def connect(self, client: _Client) -> None:
        if self._client is not None:
            self._client.lose()
        self._client = client
        for frame in self._reports.frames():
            client.deliver(frame)
        running = [field for proc in self._procs.values() for field in (proc.spec.token, b"7", b"0.0", proc.spec.note)]
        client.deliver(pack(b"hello", b"1", *running))

    def command(self, verb: bytes, fields: Sequence[bytes]) -> None:
        if not self.alive:
            return
        if verb == b"launch":
            self._launch(Spec.from_fields(list(fields)))
        elif verb == b"ack":
            self._reports.acknowledge(map(int, fields))
        elif verb == b"gone":
            self._tell(pack(b"gone", *fields))
        elif verb == b"sync":
            self._tell(pack(b"synced"))
        elif verb in (b"kill", b"terminate") and fields[0] in self._procs:
            proc = self._procs[fields[0]]
            patience = float(fields[1]) if verb == b"terminate" else 0.0
            self._world.loop.call_later(patience, proc.end, SIGNALED, 9)

    def _launch(self, spec: Spec) -> None:
        if spec.token in self._procs or spec.token in self._reports:
            return
        if spec.program == b"missing":
            self._tell(self._reports.add(spec.token, spec.note, failed("missing"), []))
            return
        self._procs[spec.token] = Proc(self._world, spec, self._ended)

    def _ended(self, proc: Proc, kind: bytes, value: int) -> None:
        self._procs.pop(proc.spec.token, None)
        if self.alive:
            self._tell(self._reports.add(proc.spec.token, proc.spec.note, (kind, b"", b"%d" % value, b"0"), []))

    def _tell(self, frame: bytes) -> None:
        if self._client is not None:
            self._client.deliver(frame)


class _Client:
    """An agent's end of its socket to a supervisor."""

    def __init__(
        self,
        world: World,
        supervisor: Supervisor,
        on_frame: Callable[[bytes, list[bytes]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._world, self._supervisor = world, supervisor
        self._on_frame, self._on_lost = on_frame, on_lost
        self._lost = False
        self._frames: deque[bytes] = deque()
        self._context = contextvars.copy_context()  # that of the agent: one that is dead hears nothing

    @classmethod
    async def connect(cls, world: World, directory: Path, on_frame: Any, on_lost: Any) -> _Client:
        supervisor = world.supervisors.get(directory)
        if supervisor is None or not supervisor.alive:
            raise FileNotFoundError(directory)
        client = cls(world, supervisor, on_frame, on_lost)
        supervisor.connect(client)
        return client

    def send(self, *fields: bytes) -> None:
        """Buffered for a step, and gone with its sender until then."""
        if not self._lost:
            self._world.loop.call_soon(outside, functools.partial(self._supervisor.command, fields[0], fields[1:]))

    def deliver(self, frame: bytes) -> None:
        self._frames.append(frame)
        delay = self._world.chance.choice([0.0, 0.0005])
        self._world.loop.call_later(delay, self._take, context=self._context)

    def lose(self) -> None:
        if not self._lost:
            self._lost = True
            self._world.loop.call_later(0.001, self._on_lost, context=self._context)

    def _take(self) -> None:
        verb, *fields = unpack(self._frames.popleft()[4:])
        self._on_frame(verb, fields)
