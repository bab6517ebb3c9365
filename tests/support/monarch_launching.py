"""A driver of Monarch's with a `MonarchProcLauncher`, in a process of its own: `python monarch_launching.py ADDRESS`.

It launches procs through the actor's endpoints, and prints what has come of them as one line of JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monarch.actor
import ray
from monarch._src.actor import proc_launcher as abc
from monarch.actor import Actor, endpoint, this_host, this_proc
from node_rig import until

from ray_launcher import decode_exit
from ray_launcher.cluster.actors import NAMESPACE
from ray_launcher.integrations.monarch import MonarchProcLauncher

#: Seconds after which a wait fails.
DEADLINE = 60.0
SESSION = "monarch-test"
#: Tells on stderr, in JSON, how it was started.
_TELL = """
import json, os, sys
argv0 = open("/proc/self/cmdline").read().split("\\0")[0]
cpus = len(os.sched_getaffinity(0))
print(json.dumps({"argv0": argv0, "args": sys.argv[1:], "cpus": cpus, "env": dict(os.environ)}), file=sys.stderr)
"""
_has_new_fields = "inherit_env" in {each.name for each in dataclasses.fields(abc.LaunchOptions)}


@dataclasses.dataclass
class LaterOptions(abc.LaunchOptions):
    """What a later Monarch may send."""

    cgroup: str = "/monarch"


class Whereabouts(Actor):
    """Tells which process it is in."""

    @endpoint
    async def pid(self) -> int:
        """Its process."""
        return os.getpid()


def options(program: str, *args: str, kind: type[abc.LaunchOptions] = abc.LaunchOptions, **more: Any) -> Any:
    """As Monarch would make them."""
    given: dict[str, Any] = {
        "bootstrap_payload": "payload",
        "process_name": "name",
        "program": program,
        "arg0": None,
        "args": list(args),
        "env": {},
        "want_stdio": True,
        "tail_lines": 10,
        "log_channel": None,
        "proc_bind": None,
    }
    return kind(**{**given, **more})


def shell(script: str, **more: Any) -> Any:
    return options("/bin/sh", "-c", script, **more)


def tell(**more: Any) -> Any:
    return options(sys.executable, "-I", "-S", "-c", _TELL, "an argument", **more)


def spawner() -> Any:
    return ray.get_actor(f"spawner-{SESSION}", NAMESPACE)


class Scenarios:
    """Each has a fact for the tests."""

    def __init__(self, launcher: Any, log: list[str]) -> None:
        self._launcher, self._log, self._count = launcher, log, 0

    def end_of(self, opts: Any, once_up: Callable[[str], object] = lambda proc_id: None) -> dict[str, Any]:
        """Launch it, do something to it, and tell what the port said; `up` in its log directory tells that it runs."""
        self._count += 1
        proc_id = f"proc {self._count}"
        answer = self._launcher.launch.call_one(proc_id, opts)
        once_up(proc_id)
        try:
            result = answer.get(timeout=DEADLINE)
        except Exception as error:  # noqa: BLE001  # the tests shall see it
            return {"raised": str(error)}
        assert type(result) is abc.ProcExitResult
        return {**dataclasses.asdict(result), "decoded": str(decode_exit(result))}

    def told(self, **more: Any) -> Any:
        """What the proc says of itself."""
        result = self.end_of(tell(**more))
        return json.loads(result["stderr_tail"][-1]) if result.get("stderr_tail") else result

    def a_code(self) -> Any:
        return self.end_of(shell("echo one >&2; echo two >&2; exit 3"))

    def a_signal(self) -> Any:
        return self.end_of(shell("kill -USR1 $$"))

    def everything(self) -> Any:
        return self.told(env={"OWN": "1"}, log_channel="ipc://somewhere", arg0="other", proc_bind={"cpus": "0"})

    def default_arg0(self) -> Any:
        return self.told()["argv0"]

    def a_clean_environment(self) -> Any:
        return self.told(inherit_env=False, env={"OWN": "1"})["env"] if _has_new_fields else None

    def removed(self) -> Any:
        os.environ.update({"LEFT_A": "1", "LEFT_B": "1"})
        more = {"env_remove": ["LEFT_A", "LEFT_*"]} if _has_new_fields else {}
        return sorted(name for name in self.told(**more)["env"] if name.startswith("LEFT_"))

    def one_line(self) -> Any:
        return self.end_of(shell("echo one >&2; echo two >&2", tail_lines=1))["stderr_tail"]

    def no_line(self) -> Any:
        return self.end_of(shell("echo one >&2", tail_lines=0))["stderr_tail"]

    def no_stdio(self) -> Any:
        return self.end_of(shell("echo one >&2", want_stdio=False))["stderr_tail"]

    def killed(self) -> Any:
        with fifo() as (path, up):
            return self.end_of(
                shell(f"echo up > {path}; exec sleep 9999"),
                lambda proc_id: (up(), self._launcher.kill.broadcast(proc_id)),
            )

    def terminated(self) -> Any:
        with fifo() as (path, up):
            return self.end_of(
                shell(f"echo up > {path}; exec sleep 9999"),
                lambda proc_id: (up(), self._launcher.terminate.call_one(proc_id, 9999.0).get()),
            )

    def terminated_though_stubborn(self) -> Any:
        with fifo() as (path, up):
            return self.end_of(
                shell(f"trap '' TERM; echo up > {path}; while :; do sleep 9999; done"),
                lambda proc_id: (up(), self._launcher.terminate.call_one(proc_id, 0.1).get()),
            )

    def missing(self) -> Any:
        return self.end_of(options("/no/such/program"))

    def refused(self) -> Any:
        return self.end_of(shell("exit", env={"A=B": "1"}))

    def nonsense(self) -> Any:
        """Nothing of it ends the actor."""
        self._launcher.kill.call_one("unknown").get()
        self._launcher.terminate.call_one("unknown", -1.0).get()
        return self.end_of(shell("exit 4"))["exit_code"]

    def later_fields(self) -> Any:
        del self._log[:]
        opts = shell("exit 5", kind=LaterOptions, proc_bind={"cpus": "0", "gpunodebind": "0"})
        codes = [self.end_of(opts)["exit_code"] for _ in range(2)]
        return {"codes": codes, "log": list(self._log)}

    def spawner_killed(self) -> Any:
        """The actor above the proc is lost, and comes back."""
        with fifo() as (path, up), fifo() as (go, _):

            def lose(proc_id: str) -> None:
                up()
                os.kill(ray.get(spawner().facts.remote())["pid"], signal.SIGKILL)
                with open(go, "w") as file:
                    file.write("go\n")

            return self.end_of(shell(f"echo up > {path}; read -r _ < {go}; exit 6"), lose)

    def spawner_gone(self) -> Any:
        """For good: the last of all."""
        with fifo() as (path, up):
            return self.end_of(shell(f"echo up > {path}; sleep 9999"), lambda proc_id: (up(), ray.kill(spawner())))


@contextlib.contextmanager
def fifo() -> Iterator[tuple[Path, Callable[[], str]]]:
    """A named pipe, and how to wait for a line in it."""
    path = Path(os.environ["TMPDIR"]) / f"fifo-{os.urandom(4).hex()}"
    os.mkfifo(path)
    try:
        yield path, path.read_text
    finally:
        path.unlink()


class Ended:
    """The actor ends while its proc runs: it is stopped, or SIGKILLed, which Monarch tells ten seconds later."""

    def __init__(self, address: str, *, kill: bool) -> None:
        mesh = this_host().spawn_procs(name="ended")
        params = {"address": address, "grace": 0.5, "placement": {"num_gpus": 1}}
        launcher = mesh.spawn("launcher", MonarchProcLauncher, params)
        pid = mesh.spawn("whereabouts", Whereabouts).pid.call_one().get()
        with fifo() as (path, up):
            self._answer = launcher.launch.call_one(
                "orphan", shell(f"echo $$ $CUDA_VISIBLE_DEVICES > {path}; exec sleep 9999")
            )
            proc, self.gpu = up().split()
        if kill:
            os.kill(pid, signal.SIGKILL)
        else:
            mesh.stop().get()
        until(lambda: not Path(f"/proc/{proc}").exists(), "the proc is gone", DEADLINE)

    def caught(self) -> str:
        """What its caller gets."""
        try:
            return repr(self._answer.get(timeout=DEADLINE))
        except Exception as error:  # noqa: BLE001  # the test shall see it
            return type(error).__name__


#: Params that are refused.
BAD: dict[str, Any] = {
    "no dict": [("session", "x")],
    "unknown": {"sesion": "x"},
    "no placement": {"placement": "gpu"},
    "bad placement": {"placement": {"num_gpus": -1}},
}


def refusal(params: Any) -> str:
    """The error of the actor's construction, which comes before it connects to anything."""
    try:
        MonarchProcLauncher(params)
    except Exception as error:  # noqa: BLE001  # the test shall see it
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(address: str) -> None:
    """Play all of them."""
    monarch.actor.unhandled_fault_hook = lambda failure: None  # else the driver ends with the first actor that fails
    log: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: log.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ray_launcher.integrations.monarch").addHandler(handler)
    killed, stopped = Ended(address, kill=True), Ended(address, kill=False)
    params = {"address": address, "session": SESSION, "grace": 0.5}
    launcher = this_proc().spawn("launcher", MonarchProcLauncher, params)
    scenarios = Scenarios(launcher, log)
    names = [name for name, value in vars(Scenarios).items() if not name.startswith("_")]
    facts = {name: getattr(scenarios, name)() for name in names if name not in ("end_of", "told")}
    facts["gpu"] = killed.gpu
    facts["bad_params"] = {name: refusal(params) for name, params in BAD.items()}
    facts |= {"actor_stopped": stopped.caught(), "actor_killed": killed.caught()}
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
