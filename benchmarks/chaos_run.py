"""The driver's side of the chaos run: launches lives, asks for their ends, and notes what the ports say."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import pickle
import queue
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from chaos_lives import Ask, Life, random_group, random_life, stream
from chaos_procfs import Process, is_alive, process
from chaos_records import Launch, Request, Stamps
from chaos_world import World

from ray_launcher import ExitPort, Failed, LaunchOptions, ProcExitResult, RayProcLauncher

#: Seconds between two looks at what is to be done.
TICK = 0.02
#: Seconds for a port that has resolved to say so again.
SECOND_LOOK = 60.0


class Run:
    """One session, and everything that is launched in it."""

    def __init__(self, launcher: RayProcLauncher, world: World, directory: Path, seed: int) -> None:
        self.launches: list[Launch] = []
        self.raised: list[str] = []  # by calls that may not
        self.longest_call = 0.0
        self.session = launcher.session
        self._launcher, self._world, self._directory, self._seed = launcher, world, directory, seed
        self._lock = threading.RLock()  # what is noted, and what is sent, in the same order
        self._open: dict[str, dict[str, tuple[Launch, ExitPort]]] = {}  # by proc_id, by name
        self._asks: list[tuple[float, int, str, Ask]] = []  # a heap: when, a number of its own, the launch's name
        self._ids = itertools.count()  # of lives: the seed says what number n does
        self._numbers = itertools.count()
        self._looks: queue.SimpleQueue[tuple[Launch, ExitPort]] = queue.SimpleQueue()
        self._closing = False
        threading.Thread(target=self._look_again, name="second looks", daemon=True).start()

    # -- what happens by itself -----------------------------------------------------------------------------------

    def launch_until(self, until: float, rate: float, limit: int) -> None:
        """Launch `rate` lives a second, one or several with a message, while no more than `limit` are alive."""
        rng = stream(self._seed, "groups")
        next_launch = time.monotonic()
        while (now := time.monotonic()) < until:
            self._ask_due()
            if now >= next_launch and self._alive() < limit:
                size = random_group(rng)
                self._launch_group(size)
                next_launch = max(next_launch, now - 1) + max(size, 1) / rate * rng.uniform(0.5, 1.5)
            time.sleep(TICK)

    def settle(self, patience: float) -> None:
        """No more launches; whatever still lives is asked to end, and whose port does not resolve in time hangs."""
        self._closing = True
        rng = stream(self._seed, "end")
        for launch, _ in self._all_open():
            self._ask(launch.proc_id, rng.choice((None, 2.0)))
        give_up = time.monotonic() + patience
        while self._alive() and time.monotonic() < give_up:
            self._ask_due()
            time.sleep(TICK)
        for launch, _ in self._all_open():
            launch.hung = True

    def close(self, count: int, grace: float) -> None:
        """End the session while `count` more procs run."""
        lives = [
            Life(60.0, on_term=on_term, escapes=escapes, lines=3)
            for on_term, escapes in itertools.product(("dies", "ignores", "exit 7"), ("no", "heeds", "ignores"))
        ]
        self._send([(f"last {n}", lives[n % len(lives)]) for n in range(count)])
        give_up = time.monotonic() + 30
        while len(self.running()) < self._alive() and time.monotonic() < give_up:
            time.sleep(TICK)
        with self._lock:
            for launch, _ in self._all_open():
                launch.requests.append(Request(time.monotonic(), grace))
        with self._noted("close", may_wait=True):
            self._launcher.close(grace)
        give_up = time.monotonic() + 10
        while self._alive() and time.monotonic() < give_up:  # the callbacks have a thread of their own
            time.sleep(TICK)

    def probe(self, node: str | None) -> None:
        """A launch that ends at once, to see when the session serves again."""
        slot = None if node is None else node.rstrip("0123456789")
        self._send([(f"probe {next(self._numbers)}", Life(slot=slot))])

    def running(self) -> list[tuple[str, Process]]:
        """(name, leader) of launches that run."""
        starts = ((launch.name, Stamps.read(self._directory / launch.name).start) for launch, _ in self._all_open())
        found = ((name, start, process(start.pid)) for name, start in starts if start is not None)
        return [(name, leader) for name, start, leader in found if leader and leader.started == start.ticks]

    # -- launching ------------------------------------------------------------------------------------------------

    def _launch_group(self, size: int) -> None:
        ids = [f"p{next(self._ids)}" for _ in range(max(size, 1))]
        items = [(proc_id, random_life(stream(self._seed, proc_id))) for proc_id in ids]
        self._send(items, many=size > 0)
        for proc_id, life in items:
            if life.rival:
                self._send([(proc_id, Life(slot=life.slot))])

    def _send(self, items: list[tuple[str, Life]], many: bool = False) -> None:
        """Launch them, one by one or with one message, and do what is to be done at once."""
        with self._lock:
            launches = {proc_id: self._noted_launch(proc_id, life) for proc_id, life in items}
            options = {proc_id: self._options(launch) for proc_id, launch in launches.items()}
            with self._noted("launch"):
                if many:
                    ports = {proc_id: done.exit_port for proc_id, done in self._launcher.launch_many(options).items()}
                else:
                    ports = {each: self._launcher.launch(each, options[each]).exit_port for each in options}
                self.launches += launches.values()
                for proc_id, port in ports.items():
                    self._open.setdefault(proc_id, {})[launches[proc_id].name] = launches[proc_id], port
                for proc_id, port in ports.items():
                    port.add_done_callback(partial(self._told, launches[proc_id], port))
        for launch in launches.values():
            for ask in launch.life.asks:
                heapq.heappush(self._asks, (launch.launched + ask.after, next(self._numbers), launch.name, ask))
        self._ask_due()

    def _noted_launch(self, proc_id: str, life: Life) -> Launch:
        name = f"{proc_id.replace(' ', '-')}.{next(self._numbers)}"
        node = None if life.slot is None else self._world.place(life.slot)[0]
        return Launch(name, proc_id, life, time.monotonic(), node, rival=proc_id in self._open)

    def _options(self, launch: Launch) -> LaunchOptions:
        node_id = None if launch.life.slot is None else self._world.place(launch.life.slot)[1]
        return launch.life.options(self._directory, launch.name, node_id)

    # -- asking ---------------------------------------------------------------------------------------------------

    def _ask_due(self) -> None:
        with self._lock:
            while self._asks and self._asks[0][0] <= time.monotonic():
                *_, name, ask = heapq.heappop(self._asks)
                for launch, _ in self._all_open():
                    if launch.name == name:
                        self._ask(launch.proc_id, ask.timeout)

    def _ask(self, proc_id: str, timeout: float | None) -> None:
        with self._lock:
            for launch, _ in self._open.get(proc_id, {}).values():
                launch.requests.append(Request(time.monotonic(), timeout))
            with self._noted("a request"):
                if timeout is None:
                    self._launcher.kill(proc_id)
                else:
                    self._launcher.terminate(proc_id, timeout)

    # -- being told -----------------------------------------------------------------------------------------------

    def _told(self, launch: Launch, port: ExitPort, result: ProcExitResult) -> None:
        """The port's callback, in the package's own thread."""
        now = time.monotonic()
        stamps = Stamps.read(self._directory / launch.name)
        launch.survivors += survivors(stamps, result)
        with self._lock:
            launch.results.append((now, result))
            self._open.get(launch.proc_id, {}).pop(launch.name, None)
            if not self._open.get(launch.proc_id):
                self._open.pop(launch.proc_id, None)
        if launch.life.second_look:
            self._looks.put((launch, port))
        if launch.life.again and not self._closing:
            rng = stream(self._seed, f"{launch.proc_id} {launch.life.again}")
            life = random_life(rng)
            self._send([(launch.proc_id, Life(**{**vars(life), "again": launch.life.again - 1, "rival": False}))])

    def _look_again(self) -> None:
        while True:
            launch, port = self._looks.get()
            with self._noted("a second look", may_wait=True):
                launch.second_look = pickle.loads(pickle.dumps(port)).wait(SECOND_LOOK)  # noqa: S301  # just made

    def _alive(self) -> int:
        with self._lock:
            return sum(map(len, self._open.values()))

    def _all_open(self) -> list[tuple[Launch, ExitPort]]:
        with self._lock:
            return [each for launches in self._open.values() for each in launches.values()]

    @contextlib.contextmanager
    def _noted(self, what: str, may_wait: bool = False) -> Iterator[None]:
        """What raises inside may not: it is noted, and the run goes on."""
        begin = time.monotonic()
        try:
            yield
        except Exception as error:  # noqa: BLE001
            self.raised.append(f"{what} raised {error!r}")
        finally:
            if not may_wait:
                self.longest_call = max(self.longest_call, time.monotonic() - begin)


def survivors(stamps: Stamps, result: ProcExitResult) -> list[str]:
    """Who is alive though the port has resolved: the leader never may be, after a failure nobody."""
    leaders = [(start.pid, start.ticks) for start in stamps.starts]
    forbidden = leaders + (stamps.escaped if isinstance(result.kind, Failed) else [])
    return [f"pid {pid}" for pid, ticks in forbidden if is_alive(pid, ticks)]
