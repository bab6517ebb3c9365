"""`ray-launcher attach`: what a living proc writes from now on, and with -i what is typed here for it to read."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial

import click

from ray_launcher import ExitPort, LogChunk, ProcExitResult, ProcLauncherError, RayProcLauncher
from ray_launcher.cli import outcome
from ray_launcher.cli.connect import leave
from ray_launcher.cli.output import STDERR, STDOUT, OutputAbandonedError, Screen
from ray_launcher.cli.sessions import chosen_one, cluster, session_options, verb
from ray_launcher.cli.signals import deliver_to, ignore
from ray_launcher.cli.terminal import STDIN, Feed

_ATTACH = """Show what a proc writes from now on, until it ends; the exit code is then that of `run`.

\b
Examples:
  ray-launcher attach train/0
  ray-launcher attach -i console

TARGET is the id of a proc. Ctrl-C leaves it, and does not end it; with -i and a proc in a terminal (`run -t`) Ctrl-C
goes there, and Ctrl-P Ctrl-Q leaves. What it has written before is shown by `ray-launcher logs`.

Exit code: the proc's own, or 128+N when signal N killed it; 130 after Ctrl-C, 0 after Ctrl-P Ctrl-Q.
"""

_FDS = {"stdout": STDOUT, "stderr": STDERR}
#: Seconds for the last output to be shown, and for threads to end.
_PATIENCE = 5.0


@verb("attach", "Show what a proc writes from now on, and type to it.", _ATTACH)
@click.option(
    "-i", "--interactive", is_flag=True, help="Pass our stdin on to it; it must have been launched with -i or -t."
)
@session_options
@click.argument("target")
def attach(*, interactive: bool, session: str | None, address: str | None, target: str) -> None:
    """See `_ATTACH`."""
    with cluster(address):
        launcher, info = chosen_one(session, target)
        if info.result is not None:
            raise click.ClickException(f"{target!r} has {info.result}: see `ray-launcher logs {target}`")
        leave(_Attachment(launcher, info.proc_id, interactive).execute())


class _Attachment:
    """The main thread decides; other threads bring it news, as in `running.Run`."""

    def __init__(self, launcher: RayProcLauncher, proc_id: str, interactive: bool) -> None:
        self._launcher, self._id = launcher, proc_id
        self._mail: queue.SimpleQueue[Callable[[], int | None]] = queue.SimpleQueue()
        self._screen = Screen(on_closed=lambda _: self._mail.put(lambda: outcome.BY_SIGNAL + signal.SIGPIPE))
        self._feed = Feed(STDIN, detach=True) if interactive else None
        self._shown = threading.Event()

    def execute(self) -> int:
        """The exit code."""
        deliver_to(lambda number: self._mail.put(partial(self._signalled, number)))
        chunks = self._launcher.follow([self._id], tail=0)
        port = self._launcher.attach(self._id).exit_port
        port.add_done_callback(lambda result: self._mail.put(partial(self._ended, port, result)))
        shower = threading.Thread(target=self._show, args=(chunks,), name="output", daemon=True)
        shower.start()
        try:
            if self._feed is not None:
                stdin = self._launcher.stdin(self._id)
                self._feed.begin(stdin, self._fail, lambda: self._mail.put(partial(self._leave, 0)))
            while (code := self._mail.get()()) is None:
                pass
        finally:
            ignore()
            self._give_back()
        return code

    def _give_back(self) -> None:
        if self._feed is not None:
            self._feed.end()

    def _show(self, chunks: Iterator[LogChunk]) -> None:
        try:
            for chunk in chunks:
                self._screen.write(_FDS[chunk.stream], chunk.data)
        except OutputAbandonedError:
            pass
        except ProcLauncherError as error:
            self._mail.put(partial(self._lost, f"cannot read the output any more: {error}"))
        self._shown.set()

    def _fail(self, why: str) -> None:
        self._mail.put(partial(self._lost, f"cannot pass stdin on: {why}"))

    # -- what may come, in the main thread; each is the end, with its exit code, unless that is None ------------------

    def _ended(self, port: ExitPort, result: ProcExitResult) -> int:
        self._shown.wait(_PATIENCE)
        self._give_back()
        text = outcome.summary_of_one(result)
        if text is not None:
            self._screen.say(text)
        return outcome.exit_code(result, port)

    def _lost(self, why: str) -> int:
        self._give_back()
        self._screen.say(why)
        return outcome.LAUNCHER_ERROR

    def _leave(self, code: int, *, after_control_c: bool = False) -> int:
        self._give_back()
        self._screen.say(f"detached from {self._id}, which runs on", after_control_c=after_control_c)
        return code

    def _signalled(self, number: int) -> int:
        return self._leave(outcome.BY_SIGNAL + number, after_control_c=number == signal.SIGINT)
