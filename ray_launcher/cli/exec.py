"""`ray-launcher exec`: a command in a living proc's environment, from a short session of its own.

Of its own, because the procs of a session that is not detached are its driver's alone, and because a session ends with
its driver however that ends, and the command with it. The other session is only looked at.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Sequence

import click

from ray_launcher import ActorProcLauncher, LaunchOptions, LaunchResult, ProcInfo, ProcLauncherError, RayProcLauncher
from ray_launcher.cli.connect import ConnectError
from ray_launcher.cli.jobs import Target
from ray_launcher.cli.options import variable
from ray_launcher.cli.outcome import TAIL_LINES
from ray_launcher.cli.running import Run
from ray_launcher.cli.sessions import chosen_one, session_options, verb
from ray_launcher.cli.terminal import feed_of, stdin_fields, terminal_options

_EXEC = """Run COMMAND where a proc runs that lives: on its node, in its environment and directory, with its GPUs.

\b
Examples:
  ray-launcher exec -it train/0 -- bash
  ray-launcher exec train/0 -- nvidia-smi
  tar c conf | ray-launcher exec -i train/0 -- tar x

TARGET is the id of a proc. COMMAND is a proc of its own: what happens to it is nothing to the other. It ends with this
command line, and with the session of TARGET. Ctrl-C terminates it, SIGKILL after --grace; with -it Ctrl-C goes to it.

Exit code: COMMAND's own, or 128+N when signal N killed it; 127 when it was not found, 126 when it could not be
executed, 125 for any other failure to run it.
"""


class Into:
    """A `Job` of one command. target: of which proc, of that session, or of any."""

    name = "exec"
    fail_fast = restarts = False

    def __init__(self, session: str | None, target: str, options: LaunchOptions, grace: float) -> None:
        self._session, self._target, self._options, self._grace = session, target, options, grace
        self._found: tuple[RayProcLauncher, ProcInfo] | None = None
        self._launched: tuple[RayProcLauncher, str] | None = None

    def settle(self) -> None:
        """See `Job`."""
        try:
            self._found = chosen_one(self._session, self._target)
        except (click.ClickException, ProcLauncherError) as error:
            raise ConnectError(error.message if isinstance(error, click.ClickException) else str(error)) from error

    def launch(self, launcher: ActorProcLauncher) -> Sequence[LaunchResult]:
        """See `Job`."""
        assert self._found is not None  # noqa: S101  # see settle
        there, info = self._found
        assert isinstance(launcher, RayProcLauncher)  # noqa: S101  # its target names no plug-in
        launched = launcher.exec(info.proc_id, self._options, of=there)
        self._launched = launcher, launched.proc_id
        threading.Thread(target=self._watch, args=(there,), name="session", daemon=True).start()
        return [launched]

    def terminate(self, ranks: Collection[int], grace: float) -> None:
        """See `Job`."""
        if self._launched is not None and ranks:
            launcher, proc_id = self._launched
            launcher.terminate(proc_id, grace)

    def kill(self, ranks: Collection[int]) -> None:
        """See `Job`."""
        if self._launched is not None and ranks:
            launcher, proc_id = self._launched
            launcher.kill(proc_id)

    def blame(self) -> None:
        """See `Job`."""

    def _watch(self, there: RayProcLauncher) -> None:
        """It ends with the session that it looks at."""
        with contextlib.suppress(ProcLauncherError):
            for _ in there.events():
                pass
        with contextlib.suppress(ProcLauncherError):  # we are leaving
            self.terminate([0], self._grace)


@verb(
    "exec",
    "Run a command where a proc runs.",
    _EXEC,
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
)
@terminal_options
@click.option(
    "-e",
    "--env",
    type=variable,
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Set a variable, over those of the proc; without a value, to the one it has here. Repeatable.",
)
@click.option("--cwd", metavar="DIR", help="Directory to run in; a relative one starts from the proc's.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=10,
    metavar="SECONDS",
    help="Time between SIGTERM and SIGKILL when the command is terminated.  [default: 10]",
)
@session_options
@click.argument("target")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGS]...")
def exec_(  # noqa: PLR0913  # one argument per option
    *,
    interactive: bool,
    tty: bool,
    env: Sequence[tuple[str, str]],
    cwd: str | None,
    grace: float,
    session: str | None,
    address: str | None,
    target: str,
    command: Sequence[str],
) -> int:
    """See `_EXEC`."""
    terminal = {"interactive": interactive, "tty": tty}
    variables = dict(env)
    words = command[command[0] == "--" :]
    if not words:
        raise click.UsageError("COMMAND is missing: ray-launcher exec TARGET -- COMMAND ARGS...")
    try:
        fields = stdin_fields(terminal, variables)
        options = LaunchOptions(
            program=words[0], args=words[1:], env=variables, cwd=cwd, tail_lines=TAIL_LINES, **fields
        )
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    return Run(
        Into(session, target, options, grace), Target(address, None, grace, None), feed_of(terminal), start=False
    ).execute()
