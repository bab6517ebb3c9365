"""`ray-launcher wait`, `stop`, `kill` and `rm`: the ends of procs."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import click

from ray_launcher import ProcInfo, RayProcLauncher
from ray_launcher.cli import outcome, show
from ray_launcher.cli.connect import leave
from ray_launcher.cli.limits import time_option
from ray_launcher.cli.sessions import chosen, cluster, open_sessions, session_options, verb

_Found = Sequence[tuple[RayProcLauncher, ProcInfo]]

_WAIT = """Wait until procs have ended; print the exit code of each, and exit with that of the first that failed.

TARGET is the id of a proc, or the name of a gang or run, perhaps with ranks behind it, as in train/0-3. Codes are those
of `ray-launcher run`.

\b
Examples:
  ray-launcher wait train
  ray-launcher wait server/0 && echo it went well
"""

_STOP = """End procs: SIGTERM to every process, SIGKILL to what is left after --time; wait until they have ended.

What would be restarted is not.

\b
Examples:
  ray-launcher stop train
  ray-launcher stop -t 60 train/0-3
  ray-launcher stop --all
"""

_KILL = """Send a signal to every process of procs: SIGKILL unless another is named. Does not wait.

After SIGKILL nothing is restarted; other signals are the program's business.

\b
Examples:
  ray-launcher kill train
  ray-launcher kill -s USR1 server
"""

_RM = """Forget procs that have ended, and remove their logs.

\b
Examples:
  ray-launcher rm train
  ray-launcher rm --force server
"""


def _signal(value: str) -> int:
    name = value.upper().removeprefix("SIG")
    if value.isdecimal() and int(value) in signal.valid_signals():
        return int(value)
    try:
        return int(signal.Signals[f"SIG{name}"])
    except KeyError:
        raise click.BadParameter(f"{value!r} is no signal; write a name, as in USR1, or a number") from None


_targets = click.argument("targets", nargs=-1, metavar="TARGET...")
_json = click.option("--json", "json_", is_flag=True, help="What became of each, as a JSON array.")


@verb("wait", "Wait for the ends of procs, and tell their exit codes.", _WAIT)
@_targets
@_json
@session_options
def wait(*, targets: Sequence[str], json_: bool, session: str | None, address: str | None) -> None:
    """See `_WAIT`."""
    _check_some(targets)
    with cluster(address):
        ended = _ends(chosen(session, targets))
        codes = [code for _, code in ended]
        if json_:
            show.as_json([{**facts, "exit_code": code} for facts, code in ended])
        else:
            for code in codes:
                click.echo(code)
        leave(next(filter(None, codes), 0))


@verb("stop", "End procs, gently at first.", _STOP)
@_targets
@click.option("-a", "--all", "everything", is_flag=True, help="All that live.")
@time_option
@_json
@session_options
def stop(  # one argument per option
    *, targets: Sequence[str], everything: bool, grace: float, json_: bool, session: str | None, address: str | None
) -> None:
    """See `_STOP`."""
    if not everything:
        _check_some(targets, " or --all")
    with cluster(address):
        found = _living(session) if everything else chosen(session, targets)
        for launcher, info in found:
            if info.state != "EXITED":
                launcher.terminate(info.proc_id, grace)
        _tell(_ends(found), json_)


@verb("kill", "Send a signal to procs.", _KILL)
@_targets
@click.option("-s", "--signal", "number", type=_signal, default="KILL", help="Its name or number.  [default: KILL]")
@_json
@session_options
def kill(*, targets: Sequence[str], number: int, json_: bool, session: str | None, address: str | None) -> None:
    """See `_KILL`."""
    _check_some(targets)
    with cluster(address):
        found = [(launcher, info) for launcher, info in chosen(session, targets) if info.state != "EXITED"]
        for launcher, info in found:
            if number == signal.SIGKILL:
                launcher.kill(info.proc_id)
            else:
                launcher.signal(info.proc_id, number)
        for launcher in {launcher for launcher, _ in found}:
            launcher.close()  # returns when it has been asked for
        _tell([({"session": launcher.session, "proc_id": info.proc_id}, 0) for launcher, info in found], json_)


@verb("rm", "Forget procs that have ended.", _RM)
@_targets
@click.option("-f", "--force", is_flag=True, help="Kill those that live first.")
@_json
@session_options
def rm(*, targets: Sequence[str], force: bool, json_: bool, session: str | None, address: str | None) -> None:
    """See `_RM`."""
    _check_some(targets)
    with cluster(address):
        found = chosen(session, targets)
        living = [(launcher, info) for launcher, info in found if info.state != "EXITED"]
        if living and not force:
            names = ", ".join(info.proc_id for _, info in living)
            raise click.ClickException(f"still there: {names}; stop them first, or use --force")
        for launcher, info in living:
            launcher.kill(info.proc_id)
        _ends(living)
        for launcher in {launcher for launcher, _ in found}:
            launcher.remove(*(info.proc_id for each, info in found if each is launcher))
        _tell([({"session": launcher.session, "proc_id": info.proc_id}, 0) for launcher, info in found], json_)


def _check_some(targets: Sequence[str], otherwise: str = "") -> None:
    if not targets:
        raise click.UsageError(
            f"name a proc, gang or run{otherwise}; see `ray-launcher ps`", click.get_current_context()
        )


def _living(session: str | None) -> _Found:
    found = [(launcher, info) for launcher in open_sessions(session) for info in launcher.procs()]
    return [(launcher, info) for launcher, info in found if info.state != "EXITED"]


def _ends(found: _Found) -> list[tuple[dict[str, object], int]]:
    """What there is to know of each once it has ended, and its exit code."""
    ports = [launcher.attach(info.proc_id).exit_port for launcher, info in found]
    ended: list[tuple[dict[str, object], int]] = []
    for (launcher, info), port in zip(found, ports, strict=True):
        result = port.wait()
        code = 0 if result.ok else outcome.exit_code(result, port)
        ended.append(
            ({"session": launcher.session, "proc_id": info.proc_id, "result": show.result_facts(result)}, code)
        )
    return ended


def _tell(done: Sequence[tuple[dict[str, object], int]], json_: bool) -> None:
    if json_:
        show.as_json([facts for facts, _ in done])
    else:
        for facts, _ in done:
            click.echo(os.fsencode(str(facts["proc_id"])))
