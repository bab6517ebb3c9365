"""One blow at a layer, at every moment of a proc's life at once: what each port says, and what ran how often."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path

from node_rig import running, until
from ray_rig import DEADLINE, Nodes, procs_of, shell
from victims import Layers

from ray_launcher import LaunchOptions, ProcExitResult, RayProcLauncher

#: Procs that are on their way when the blow comes.
CROWD = 24
#: Seconds from TERM to KILL of the one that is being terminated: longer than anybody takes to come back.
PATIENCE = 3.0

#: Each says that it has started, in a file of its own ($1).
_SCRIPTS = {
    "running": 'sleep 9999 & setsid sleep 9999 & echo $$ >> "$1"; wait',
    "terminating": 'trap \'echo got TERM >> "$1"\' TERM; echo $$ >> "$1"; while :; do sleep 0.05; done',
    "exiting": 'echo $$ >> "$1"; read code < "$2"; exit $code',
    "starting": 'echo $$ >> "$1"; exit "$2"',
}


@dataclasses.dataclass
class Blow:
    """What there was to see. Times in seconds."""

    launcher: RayProcLauncher
    told: dict[str, list[ProcExitResult]]
    files: Path
    pid: int = 0  # of the proc that runs
    terminated_after: float = 0.0  # from the request to the death of the one that is being terminated
    next: ProcExitResult | None = None

    def starts(self, proc_id: str) -> int:
        """How often the program was started."""
        return len([line for line in self._lines(proc_id) if line.isdigit()])

    def result(self, proc_id: str) -> ProcExitResult:
        """What its port has said; one answer, however long one waits for more."""
        [result] = self.told[proc_id]
        return result

    def crowd(self) -> dict[str, int]:
        """The procs that were on their way, and the codes that they exit with."""
        return {f"starting {code}": code for code in range(CROWD)}

    def path(self, proc_id: str) -> Path:
        return self.files / proc_id.replace(" ", "-")

    def _lines(self, proc_id: str) -> list[str]:
        try:
            return self.path(proc_id).read_text().splitlines()
        except FileNotFoundError:
            return []

    def options(self, nodes: Nodes, proc_id: str, *more: str) -> LaunchOptions:
        moment = proc_id.split(maxsplit=1)[0]
        opts = shell(_SCRIPTS[moment], nodes.on("a"))
        return dataclasses.replace(opts, args=[*opts.args, moment, str(self.path(proc_id)), *more])

    def launch(self, launches: dict[str, LaunchOptions]) -> None:
        for proc_id, launched in self.launcher.launch_many(launches).items():
            self.told[proc_id] = []
            launched.exit_port.add_done_callback(self.told[proc_id].append)

    def wait_told(self, *proc_ids: str) -> None:
        until(lambda: all(map(self.told.get, proc_ids)), f"ports of {proc_ids} resolve", DEADLINE)

    def has_said(self, proc_id: str, count: int) -> list[str]:
        until(lambda: len(self._lines(proc_id)) >= count, f"{count} words of {proc_id}", DEADLINE)
        return self._lines(proc_id)


def strike(launcher: RayProcLauncher, nodes: Nodes, victim: str, files: Path, *, survives: bool) -> Blow:
    """Prepare procs on node a, hit the victim there, and wait until all has been told."""
    blow = Blow(launcher, {}, files)
    fifo = files / "fifo"
    os.mkfifo(fifo)
    early = {
        "running": blow.options(nodes, "running"),
        "terminating": blow.options(nodes, "terminating"),
        "exiting": blow.options(nodes, "exiting", str(fifo)),
    }
    blow.launch(early)
    pids = {proc_id: int(blow.has_said(proc_id, 1)[0]) for proc_id in early}
    blow.pid = pids["running"]
    layers = Layers(launcher, nodes.ids()["a"])
    asked = time.monotonic()
    launcher.terminate("terminating", PATIENCE)
    blow.has_said("terminating", 2)
    blow.launch({proc_id: blow.options(nodes, proc_id, str(code)) for proc_id, code in blow.crowd().items()})
    layers.strike(victim)
    with _exits_meanwhile(fifo):
        layers.let_go(victim)
        until(lambda: not running(pids["terminating"]), "the one that was terminated is dead", DEADLINE)
        blow.terminated_after = time.monotonic() - asked
        blow.wait_told("terminating", "exiting", *blow.crowd(), *([] if survives else ["running"]))
    if not survives:
        until(lambda: not running(layers.guard), "supervisor and guard have ended", DEADLINE)
    blow.launch({"starting 99": blow.options(nodes, "starting 99", "99")})
    blow.wait_told("starting 99")
    blow.next = blow.result("starting 99")
    return blow


def end(blow: Blow) -> None:
    """Kill what runs; nothing of the session's procs is left then."""
    blow.launcher.kill("running")
    blow.wait_told("running")
    until(lambda: not procs_of(blow.launcher.session), "no proc is left", DEADLINE)


@contextlib.contextmanager
def _exits_meanwhile(fifo: Path) -> Iterator[None]:
    """Tell the proc that waits for it to exit with 7; it may be dead."""
    fd = os.open(fifo, os.O_RDWR)  # so that neither side waits for the other
    try:
        os.write(fd, b"7\n")
        yield
    finally:
        os.close(fd)
