"""However a driver ends, nothing of its session is left on any node, and nobody else's is touched."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from node_rig import until
from ray_rig import DEADLINE, Driver, Nodes, ended, procs_of, rest_of, shell, slowness

from ray_launcher import RayProcLauncher

#: Seconds from the end of the driver, without the grace: design.md, "Driver lost".
PROCS_GONE = 5.0
ALL_GONE = 15.0
#: Of the sessions here, and of `close` where no other is given.
GRACE, CLOSE_GRACE = 1.0, 10.0
#: Long: the first of the drivers waits until the last has come up, on a machine that has enough to do.
LEASE = 600.0

#: A leader with a child, one that has escaped into a session of its own, and one that ignores TERM as well.
TREE = """
import os, signal, time
for escapes, ignores in ((False, False), (True, False), (True, True)):
    if os.fork() == 0:
        if escapes:
            os.setsid()
            if os.fork():
                os._exit(0)
        if ignores:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(1, b"up\\n")
        time.sleep(9999)
time.sleep(9999)
"""
TREE_SIZE = 4

DRIVER = f"""
import sys, time
import ray
from ray_launcher import LaunchOptions, Placement, RayProcLauncher

def launch(launcher):
    options = dict(program=sys.executable, args=["-I", "-S", "-c", {TREE!r}])
    nodes = [node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU")]
    procs = [launcher.launch(id_, LaunchOptions(**options, placement=Placement(node_id=id_))) for id_ in nodes]
    silent = dict.fromkeys(nodes, 3)
    for chunk in launcher.follow(nodes):
        silent[chunk.proc_id] -= chunk.data.count(b"up")
        if not any(silent.values()):
            return [proc.exit_port for proc in procs]

def end(launcher, ports, how):
    if how == "close":
        launcher.close({GRACE})
        print(*(port.done() and port.wait().kind for port in ports), sep="; ", flush=True)
        input()
    elif how == "shutdown":
        ray.shutdown()
        print(*(port.wait(9).kind for port in ports), sep="; ", flush=True)
        input()
    elif how == "exit":
        sys.exit(7)
    else:
        with launcher:
            if how == "raise":
                raise RuntimeError("of the driver's own")
            if how == "wait":
                print("waiting", flush=True)
                time.sleep(9999)

own = sys.argv[1] == "local"
ray.init(sys.argv[1], log_to_driver=False, logging_level="error", **(dict(num_cpus=1, num_gpus=0) if own else {{}}))
launcher = RayProcLauncher(grace={GRACE}, lease={LEASE})
ports = launch(launcher)
print(launcher.session, flush=True)
end(launcher, ports, input())
"""


@dataclasses.dataclass
class End:
    """One driver, how it ends, and when what was gone, in seconds from then."""

    driver: Driver
    session: str
    grace: float
    how: str
    signal: int = 0
    size: int = 2 * TREE_SIZE
    began: float = 0.0
    procs_gone: float | None = None
    all_gone: float | None = None

    def begin(self) -> None:
        self.driver.tell(self.how)
        if self.signal:
            assert self.driver.read() == "waiting"
            self.driver.process.send_signal(self.signal)
        self.began = time.monotonic()

    def look(self) -> bool:
        """Whether all is gone."""
        if self.procs_gone is None and not procs_of(self.session):
            self.procs_gone = time.monotonic() - self.began
        if self.all_gone is None and not rest_of(self.session):
            self.all_gone = time.monotonic() - self.began
        return self.procs_gone is not None and self.all_gone is not None


WAYS = {
    "close": ("close", 0, GRACE),
    "leaves_the_block": ("leave", 0, CLOSE_GRACE),
    "raises": ("raise", 0, CLOSE_GRACE),
    "exits": ("exit", 0, CLOSE_GRACE),
    "interrupt": ("wait", signal.SIGINT, CLOSE_GRACE),
    "two_interrupts": ("wait", signal.SIGINT, GRACE),
    "shutdown": ("shutdown", 0, GRACE),
    "sigterm": ("wait", signal.SIGTERM, GRACE),
    "sigkill": ("wait", signal.SIGKILL, GRACE),
    "sigkill_of_its_own_ray": ("wait", signal.SIGKILL, GRACE),
}
#: Ways that end as others do: in an orderly exit of Python, or as SIGKILL.
RARE = {"leaves_the_block", "exits", "sigterm", "sigkill_of_its_own_ray"}


def way(name: str, *more: object) -> Any:
    """A row about it."""
    return pytest.param(name, *more, marks=[pytest.mark.slow] if name in RARE else [])


@pytest.fixture(scope="module")
def bystander(shared: RayProcLauncher) -> Iterator[str]:
    """A proc of this process's own session."""
    shared.launch("bystander", shell("echo up; exec sleep 9999"))
    assert next(shared.logs("bystander", follow=True)) == "up"
    yield "bystander"
    shared.kill("bystander")


@pytest.fixture(scope="module")
def ends(request: pytest.FixtureRequest, nodes: Nodes, bystander: str) -> Iterator[dict[str, End]]:
    """All that tests are about, at once, each in its way: they wait most of the time."""
    items = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    ways = {"sigkill", *(item.callspec.params["way"] for item in items)}
    drivers = {way: Driver(DRIVER, "local" if "own_ray" in way else nodes.address) for way in WAYS if way in ways}
    try:
        ends = {}
        for way, driver in drivers.items():
            how, signum, grace = WAYS[way]
            ends[way] = End(driver, driver.read(), grace, how, signum, TREE_SIZE * (1 if "own_ray" in way else 2))
        for end in ends.values():
            assert len(procs_of(end.session)) == end.size, procs_of(end.session)
        for end in ends.values():
            end.begin()
        if "two_interrupts" in ends:
            interrupt_again(ends["two_interrupts"])
        until(lambda: _all_gone(ends.values()), "all is gone", DEADLINE)
        yield ends
    finally:
        for driver in drivers.values():
            driver.close()


def interrupt_again(end: End) -> None:
    until(lambda: len(procs_of(end.session)) <= end.size // TREE_SIZE, "those that heed TERM are gone", DEADLINE)
    end.driver.process.send_signal(signal.SIGINT)
    end.began = time.monotonic()


def _all_gone(ends: Iterable[End]) -> bool:
    return [end.look() for end in ends].count(False) == 0  # each of them looks, to know its time


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", [way(name) for name in WAYS])
def test_nothing_is_left_however_a_driver_ends(ends: dict[str, End], way: str) -> None:
    end = ends[way]
    assert end.procs_gone is not None
    assert end.procs_gone <= PROCS_GONE * slowness() + end.grace
    assert end.all_gone is not None
    assert end.all_gone <= ALL_GONE * slowness() + end.grace


@pytest.mark.parametrize(
    "way, outcome", [("close", "killed by SIGTERM"), ("shutdown", "failed: exit port closed (Ray")]
)
def test_every_port_has_resolved_when_the_driver_goes_on(ends: dict[str, End], way: str, outcome: str) -> None:
    for kind in ends[way].driver.read().split("; "):
        assert kind.startswith(outcome)


@pytest.mark.parametrize(
    "way, status, words",
    [way("leaves_the_block", 0, ""), way("raises", 1, "of the driver's own"), way("exits", 7, "")],
)
def test_the_driver_ends_as_it_would_without_procs(ends: dict[str, End], way: str, status: int, words: str) -> None:
    returncode, stderr = ends[way].driver.finish()
    assert returncode == status
    assert words in stderr


def test_another_session_on_the_same_nodes_goes_on(
    ends: dict[str, End], shared: RayProcLauncher, nodes: Nodes, bystander: str
) -> None:
    assert bystander in shared.active_procs
    for zone in ("a", "b"):
        assert ended(shared.launch(f"after on {zone}", shell("exit", nodes.on(zone))).exit_port).ok
    shared.terminate(bystander, 5)
    until(lambda: bystander not in shared.active_procs, "the bystander is gone")
