"""Strikes random layers of a running session with SIGKILL, and notes what was struck when."""

from __future__ import annotations

import signal
import time

from chaos_lives import stream
from chaos_procfs import Process
from chaos_records import Blow
from chaos_run import Run
from chaos_world import World

#: How often a layer is struck, relative to the others; a raylet has a clock of its own.
WEIGHTS = {"proc": 4, "supervisor": 2, "guard": 1, "agent": 3, "spawner": 3}
#: Seconds between two blows, and between two to raylets, at random between the two figures.
PAUSE, RAYLET_PAUSE = (0.3, 2.2), (15.0, 25.0)
#: What carries the leases: without a rest from blows to it they run out, and nodes are lost that nobody has struck.
CONTACT = ("agent", "spawner")
#: Seconds for which those may be struck again before they have come back, and of the rest after that.
STORM, REST = 4.0, 5.0


class Killer:
    """Works in the main thread: Ray starts nodes in no other."""

    def __init__(self, seed: int, layers: list[str], world: World, run: Run) -> None:
        self.blows: list[Blow] = []
        self.seen: dict[str, set[tuple[int, int]]] = {layer: set() for layer in WEIGHTS if layer != "proc"}
        self._world, self._run = world, run
        self._rng, self._pick = stream(seed, "blows"), stream(seed, "victims")
        self._layers = [layer for layer in WEIGHTS if layer in layers]
        self._raylets = "raylet" in layers
        self._storm_since = self._last_contact = float("-inf")

    def work(self, until: float) -> None:
        """Strike, pause, and so on until that moment."""
        next_raylet = time.monotonic() + self._rng.uniform(*RAYLET_PAUSE)
        while (now := time.monotonic()) < until:
            if self._raylets and now >= next_raylet and now < until - 5:
                self._strike_raylet()
                next_raylet = time.monotonic() + self._rng.uniform(*RAYLET_PAUSE)
            if self._layers:
                layer = self._rng.choices(self._layers, [WEIGHTS[layer] for layer in self._layers])[0]
                if layer not in CONTACT or self._may_storm(now):
                    getattr(self, f"_strike_{layer}")()
            time.sleep(max(0.0, min(self._rng.uniform(*PAUSE), until - time.monotonic())))

    def _may_storm(self, now: float) -> bool:
        if now > self._last_contact + REST:
            self._storm_since = now
        elif now > self._storm_since + STORM:
            return False
        self._last_contact = now
        return True

    def _strike_proc(self) -> None:
        running = self._run.running()
        if running:
            name, process = self._pick.choice(running)
            self._kill("proc", process, name=name)

    def _strike_supervisor(self) -> None:
        found = self._supervisors()
        if found:
            supervisor, _, node = self._pick.choice(found)
            self._kill("supervisor", supervisor, node)

    def _strike_guard(self) -> None:
        """Both, so that neither can tidy up after the other."""
        found = self._supervisors()
        if found:
            supervisor, guard, node = self._pick.choice(found)
            self._note("guard", supervisor, node)
            supervisor.send(signal.SIGSTOP)  # else it would notice
            guard.send(signal.SIGKILL)
            supervisor.send(signal.SIGKILL)

    def _strike_agent(self) -> None:
        found = list(self._workers("agent", "ray::Agent").items())
        if found:
            agent, node = self._pick.choice(found)
            self._kill("agent", agent, node)
            self._run.probe(node)

    def _strike_spawner(self) -> None:
        for spawner in self._workers("spawner", "ray::ClusterSpawner"):
            self._kill("spawner", spawner)
            self._run.probe(None)

    def _strike_raylet(self) -> None:
        slot = self._pick.choice(("a", "b"))
        name, _ = self._world.place(slot)
        pid = next(pid for pid, at in self._world.raylets().items() if at == name)
        self.blows.append(Blow(time.monotonic(), "raylet", pid, name))
        self._world.kill_raylet(slot)
        time.sleep(self._pick.uniform(0, 2))
        self._world.replace(slot)

    def _supervisors(self) -> list[tuple[Process, Process, str | None]]:
        found = self._world.supervisors(self._run.session)
        for layer, place in (("supervisor", 0), ("guard", 1)):
            self.seen[layer] |= {(each[place].pid, each[place].started) for each in found}  # type: ignore[union-attr]
        return found

    def _workers(self, layer: str, title: str) -> dict[Process, str]:
        found = self._world.workers(title)
        self.seen[layer] |= {(process.pid, process.started) for process in found}
        return found

    def _kill(self, layer: str, victim: Process, node: str | None = None, name: str | None = None) -> None:
        self._note(layer, victim, node, name)
        victim.send(signal.SIGKILL)

    def _note(self, layer: str, victim: Process, node: str | None, name: str | None = None) -> None:
        """Before it is done, so that no consequence is older than its cause."""
        self.blows.append(Blow(time.monotonic(), layer, victim.pid, node, name))
