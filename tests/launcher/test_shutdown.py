"""After `ray.shutdown()`: ports resolve, and nothing starts a new Ray."""

from __future__ import annotations

from collections.abc import Callable

PRELUDE = """
import ray, time
from ray_launcher import *
from ray_launcher.testing import FakeSpawner

ray.init(log_to_driver=False, logging_level=40)
OPTS = LaunchOptions(program="sleep", args=["9999"])

def refused(ask):
    try:
        ask()
    except ProcLauncherError as error:
        print(type(error).__name__, "Ray was shut down" in str(error))
    else:
        print("no error")
    assert not ray.is_initialized()
"""


def test_ports_resolve_and_later_calls_raise_instead_of_starting_a_new_ray(driver: Callable[[str], str]) -> None:
    printed = driver(
        PRELUDE
        + """
launcher = ActorProcLauncher(start_spawner(FakeSpawner))
single = launcher.launch("a", OPTS).exit_port
batch = launcher.launch_many({"b": OPTS, "c": OPTS})
called = []
single.add_done_callback(called.append)
ray.shutdown()
for port in (single, batch["b"].exit_port, batch["c"].exit_port):
    print(port.wait(30), port.done())
while not called:
    time.sleep(0.01)
for ask in (
    lambda: launcher.launch("d", OPTS),
    lambda: launcher.launch_many({"d": OPTS}),
    lambda: launcher.kill("d"),
    lambda: launcher.terminate("d", 1),
    lambda: batch["b"].exit_port.ref,
):
    refused(ask)
launcher.kill("a")
launcher.terminate("b", 1)
assert repr(single) == "<ExitPort done>" and single.wait() == called[0]
time.sleep(1)
assert not ray.is_initialized()
"""
    ).splitlines()
    for line in printed[:3]:  # the actor ends with Ray, and sometimes is heard of first
        assert line.startswith("failed: exit port closed (")
        assert line.endswith(") True")
    assert printed[3:] == [
        "LaunchError True",
        "LaunchError True",
        "KillError True",
        "TerminateError True",
        "ProcLauncherError True",
    ]


def test_the_default_launcher_keeps_quiet_too(driver: Callable[[str], str]) -> None:
    printed = driver(
        PRELUDE
        + """
launcher = RayProcLauncher()
port = launcher.launch("a", OPTS).exit_port
ended = launcher.launch("b", LaunchOptions(program="true")).exit_port
ended.wait(30)
ray.shutdown()
print(port.wait(30))
refused(lambda: launcher.launch("d", OPTS))
refused(lambda: list(launcher.logs("b")))
launcher.close()
assert not ray.is_initialized()
"""
    ).splitlines()
    assert printed[0].startswith("failed: exit port closed (")
    assert printed[1:] == ["LaunchError True", "LaunchError True"]


def test_a_new_connection_serves_new_launchers_and_no_old_ones(driver: Callable[[str], str]) -> None:
    printed = driver(
        PRELUDE
        + """
old = ActorProcLauncher(start_spawner(FakeSpawner))
port = old.launch("a", OPTS).exit_port
ray.shutdown()
ray.init(log_to_driver=False, logging_level=40)
print(port.wait(30))
new = ActorProcLauncher(start_spawner(FakeSpawner))
new.launch("a", OPTS)
try:
    old.launch("b", OPTS)
except LaunchError as error:
    print(error)
new.kill("a")
ray.shutdown()
"""
    ).splitlines()
    assert printed[0].startswith("failed: exit port closed (")
    assert printed[1:] == [
        "this process is no longer connected to the launcher's cluster: Ray was shut down",
    ]


def test_a_driver_that_ends_with_open_ports_ends_quietly(driver: Callable[[str], str]) -> None:
    printed = driver(
        PRELUDE
        + """
launcher = ActorProcLauncher(start_spawner(FakeSpawner))
port = launcher.launch("a", OPTS).exit_port
port.add_done_callback(print)
launcher.launch_many({"b": OPTS})["b"].exit_port.add_done_callback(print)
"""
    )
    assert printed == ""


def test_letting_go_of_a_spawner_waits_for_all_its_answers(driver: Callable[[str], str]) -> None:
    printed = driver(
        PRELUDE
        + """
import asyncio
from ray_launcher.mail import Mail

class Slow(FakeSpawner):
    answered = False

    async def serve_hush(self, launcher):
        await super().serve_hush(launcher)
        await asyncio.sleep(0.3)
        self.answered = True

    async def has_answered(self):
        return self.answered

spawner = start_spawner(Slow)
Mail(spawner, "x").close()
print(ray.get(spawner.has_answered.remote()))
"""
    )
    assert printed.split() == ["True"]
