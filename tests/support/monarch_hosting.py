"""Drivers of Monarch's with a `RayJob`, in processes of their own: `python monarch_hosting.py WHAT ADDRESS CACHE`.

Each prints what it has seen as lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monarch.actor
import ray
from monarch.actor import Actor, current_rank, endpoint
from monarch.config import configure

from ray_launcher import LaunchOptions, Placement, RayProcLauncher, list_sessions
from ray_launcher.integrations.monarch import RayJob

#: Seconds after which a wait fails.
DEADLINE = 60.0
MESHES = {"trainers": 2, "dataloaders": 1}
HELD = {"trainers": Placement(num_cpus=1, num_gpus=1)}


class Worker(Actor):
    """Tells where it is, and computes."""

    @endpoint
    async def where(self) -> dict[str, Any]:
        """Its process, and what that sees."""
        names = ("CUDA_VISIBLE_DEVICES", "OF_JOB")
        return {"pid": os.getpid(), "cwd": str(Path.cwd()), **{name: os.environ.get(name) for name in names}}

    @endpoint
    async def square(self) -> int:
        """Of its rank."""
        return int(current_rank().rank) ** 2

    @endpoint
    async def fail(self) -> None:
        """Raise."""
        raise ValueError("no luck")


def the_job(address: str) -> RayJob:
    """The same in every driver."""
    return RayJob(MESHES, placement=HELD, env={"OF_JOB": "yes"}, address=address, grace=1)


def say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def raised(call: Any) -> str:
    """What it raises."""
    try:
        return f"nothing, but {call()!r}"
    except Exception as error:  # noqa: BLE001  # the tests shall see it
        return f"{type(error).__name__}: {error}"


def worker_facts(job: RayJob) -> dict[str, Any]:
    launcher = RayProcLauncher.find(job.session)
    return {
        info.proc_id.split("/", 1)[1]: {"pid": info.pid, "node": info.node_id, "state": info.state}
        for info in launcher.procs()
    }


def make(address: str, cache: str) -> None:
    """Make the job, use it, and leave it running."""
    gone = the_job("127.0.0.1:1")
    gone._status = "running"  # as one that was cached
    unreachable = {"can_run": gone.can_run(the_job(address)), "kill": raised(gone.kill)}
    job = the_job(address)
    state = job.state(cached_path=cache)
    procs = state.trainers.spawn_procs(per_host={"gpus": 2})
    workers = procs.spawn("worker", Worker)
    say(
        sums=[value for _, value in workers.square.call().get()],
        where=[place for _, place in workers.where.call().get()],
        cwd=str(Path.cwd()),
        failure=raised(lambda: workers.fail.call().get()),
        dataloaders=state.dataloaders.spawn_procs().spawn("worker", Worker).square.call_one().get(),
        workers=worker_facts(job),
        session=job.session,
        free=ray.available_resources(),  # type: ignore[no-untyped-call]
        apply_id=job.apply_id,
        unreachable=unreachable,
    )


def find(address: str, cache: str) -> None:
    """Find it again, lose a host, and end it."""
    job = the_job(address)
    state = job.state(cached_path=cache)
    cached: Any = job._running
    workers = state.trainers.spawn_procs(per_host={"gpus": 2}).spawn("worker", Worker)
    others = {
        "meshes": RayJob({"trainers": 2}, placement=HELD, env={"OF_JOB": "yes"}),
        "placement": RayJob(MESHES, env={"OF_JOB": "yes"}),
        "env": RayJob(MESHES, placement=HELD),
        "session": RayJob(MESHES, placement=HELD, env={"OF_JOB": "yes"}, session="other"),
    }
    say(
        apply_id=job.apply_id,
        session=cached.session,
        workers=worker_facts(cached),
        sums=[value for _, value in workers.square.call().get()],
        can_run=cached.can_run(the_job(address)),
        can_run_other={name: cached.can_run(other) for name, other in others.items()},
    )
    victim = cached.workers("trainers")[1]
    os.kill(victim.pid, signal.SIGKILL)
    exit_ = str(victim.exit_port.wait(DEADLINE))
    say(
        exit=exit_,
        can_run=cached.can_run(the_job(address)),
        state_again=raised(lambda: job.state(cached_path=None)),
        workers=worker_facts(cached),
    )
    job.kill()
    say(
        sessions=[each.name for each in list_sessions()],
        again=raised(job.kill),
        can_run=cached.can_run(the_job(address)),
    )


def lose(address: str, cache: str) -> None:
    """Lose a host while an actor mesh lives there; Monarch takes ten seconds and more to notice."""
    del cache
    monarch.actor.unhandled_fault_hook = lambda failure: None  # else it ends the driver
    configure(get_actor_state_max_idle="1s", message_delivery_timeout="2s", get_proc_state_max_idle="1s")
    job = RayJob({"hosts": 2}, address=address, grace=1)
    workers = job.state(cached_path=None).hosts.spawn_procs(per_host={"gpus": 2}).spawn("worker", Worker)
    workers.square.call().get()
    victim, worker = job.workers("hosts")[1], worker_facts(job)["hosts/1"]
    there, launcher = Placement(node_id=worker["node"]), RayProcLauncher.find(job.session)
    launcher.call_with(os.kill, (worker["pid"], signal.SIGKILL), placement=there).result(DEADLINE)
    give_up = time.monotonic() + DEADLINE
    supervision = ""
    while "SupervisionError" not in supervision and time.monotonic() < give_up:
        supervision = raised(lambda: workers.square.call().get(timeout=5))
    say(exit=str(victim.exit_port.wait(DEADLINE)), supervision=supervision)
    job.kill()


def share(address: str, cache: str) -> None:
    """Jobs in a session that is there, and jobs that cannot be."""
    del cache
    ray.init(address, log_to_driver=False)
    with session("shared-by-jobs") as launcher:
        launcher.launch("other", LaunchOptions(program="sleep", args=["9999"]))
        job = RayJob({"hosts": 1}, session=launcher.session, grace=1)
        state = job.state(cached_path=None)
        answer = state.hosts.spawn_procs().spawn("worker", Worker).square.call_one().get()
        job.kill()
        left = {info.proc_id: info.state for info in launcher.procs() if info.state != "EXITED"}
        own: dict[str, Any] = {"session": launcher.session, "grace": 0}
        too_big = Placement(num_gpus=64, timeout=0.2)
        say(
            answer=answer,
            left=left,
            waits=raised(
                lambda: RayJob({"good": 1, "big": 1}, placement={"big": too_big}, **own).state(cached_path=None)
            ),
            too_many=raised(lambda: RayJob({"hosts": 9}, **own).state(cached_path=None)),
            no_python=raised(lambda: RayJob({"hosts": 1}, python="/no/python", **own).state(cached_path=None)),
            no_monarch=raised(
                lambda: RayJob({"hosts": 1}, env={"PYTHONPATH": without_monarch()}, **own).state(cached_path=None)
            ),
            script=raised(lambda: RayJob({"hosts": 1}).apply("script.py")),
            transport=raised(lambda: RayJob({"hosts": 1}, transport="ipc", **own).state(cached_path=None)),
            refused={name: raised(lambda given=given: RayJob(**given)) for name, given in BAD.items()},
            session_ended=raised(kill_without_session),
            ended=[info.proc_id for info in launcher.procs() if info.state != "EXITED"],
        )


def kill_without_session() -> None:
    """The session has been ended by somebody else."""
    job = RayJob({"hosts": 1}, session="ended-by-others")
    job.apply()
    RayProcLauncher.find(job.session).end(0)
    job.kill()


#: Arguments that are refused.
BAD: dict[str, Any] = {
    "no mapping": {"meshes": ["trainers"]},
    "no number": {"meshes": {"trainers": "2"}},
    "no host": {"meshes": {"trainers": 0}},
    "no mesh": {"meshes": {}},
    "no identifier": {"meshes": {"my trainers": 1}},
    "no placement": {"meshes": {"trainers": 1}, "placement": {"trainers": 4}},
    "no such mesh": {"meshes": {"trainers": 1}, "placement": {"trainer": Placement()}},
    "not detached": {"meshes": {"trainers": 1}, "session": "there", "detached": False},
}


def without_monarch() -> str:
    """A directory in which `monarch` is something else."""
    directory = Path(os.environ["TMPDIR"]) / "no-monarch"
    directory.mkdir(exist_ok=True)
    (directory / "monarch.py").write_text("raise ImportError('this is not it')\n")
    return str(directory)


@contextlib.contextmanager
def session(name: str) -> Iterator[RayProcLauncher]:
    launcher = RayProcLauncher(name, detached=True)
    try:
        yield launcher
    finally:
        launcher.end(0)


def bound(address: str, cache: str) -> None:
    """A job that ends with this driver, which waits to be killed."""
    del cache
    job = RayJob({"hosts": 1}, detached=False, address=address, grace=1)
    worker = job.state(cached_path=None).hosts.spawn_procs().spawn("worker", Worker)
    say(pids=[job.workers("hosts")[0].pid, worker.where.call_one().get()["pid"]])
    signal.pause()


if __name__ == "__main__":
    {"make": make, "find": find, "lose": lose, "share": share, "bound": bound}[sys.argv[1]](*sys.argv[2:])
