"""One run from start to end: a mailbox, read by the main thread, decides; other threads only bring it news.

Ray is started in a thread of its own, since it can block for long in places that no signal reaches. That thread lives
as long as this process: the kernel ends Ray's processes with the thread that started them.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable
from functools import partial

from ray_launcher import ProcExitResult, ProcLauncherError, RayProcLauncher, is_spare
from ray_launcher.cli import outcome
from ray_launcher.cli.account import Account, procs
from ray_launcher.cli.connect import ConnectError, connect, leave
from ray_launcher.cli.jobs import Job, Target
from ray_launcher.cli.output import (
    STDERR,
    STDOUT,
    OutputAbandonedError,
    Plain,
    Prefixed,
    Screen,
    View,
    code_of_closed,
    words_of,
)
from ray_launcher.cli.plugged import Plugged
from ray_launcher.cli.progress import Progress
from ray_launcher.cli.signals import deliver_to, ignore
from ray_launcher.cli.terminal import Feed
from ray_launcher.cli.waiting import Watch

#: Seconds for the session and Ray to be taken down when every proc has ended.
_LEAVE = 30.0
#: The same, and for killed procs to be gone, when the user does not want to wait for anything any more.
_LEAVE_NOW = 5.0
#: Seconds after the first failure at which it is worth saying that the others run on: a summary may come by itself.
_NOTICE = 2.0
#: Seconds without news after which the live line is brought up to date.
_MOMENT = 0.1
_FDS = {"stdout": STDOUT, "stderr": STDERR}


class Run:
    """Runs procs and shows what they write.

    feed: what it gives the one proc to read.  start: whether Ray may be started where no cluster runs.
    """

    def __init__(self, job: Job, target: Target, feed: Feed | None = None, *, start: bool = True) -> None:
        self._feed, self._may_start = feed, start
        self._job, self._target, self._grace = job, target, target.grace
        self._ids: list[str] = []  # by rank, once launched
        self._mail: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._screen = Screen(on_closed=lambda error: self._mail.put(partial(self._output_closed, error)))
        self._launcher: RayProcLauncher | Plugged | None = None
        self._shower: threading.Thread | None = None
        self._watch: Watch | None = None
        self._progress = Progress(self._screen)
        self._showing = True
        self._running: set[int] = set()  # ranks
        self._account = Account(job, self._screen, target.grace)
        self._verdict: int | None = None  # an exit code that has nothing to do with the procs'
        self._over = False

    def execute(self) -> int:
        """Do all of it; the exit code."""
        self._take_signals()
        threading.Thread(target=self._start, name="ray", daemon=True).start()
        code = outcome.LAUNCHER_ERROR
        try:
            while not self._over:
                self._handle()
            code = self._conclude()
        finally:
            self._leave(code)
        return code

    def _handle(self) -> None:
        """The next thing that comes; where none does for a moment, what has come is shown."""
        try:
            news = self._mail.get(timeout=_MOMENT if self._progress.stale else None)
        except queue.Empty:
            self._progress.show()
        else:
            news()

    # -- other threads --------------------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            connect(self._target.address, start=self._may_start)
            self._job.settle()
            self._mail.put(self._take_signals)  # Ray has just put its own handler before ours, one that aborts
            launcher = self._target.open()
        except ConnectError as error:
            self._mail.put(partial(self._give_up, str(error)))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is said and not waited for
            self._mail.put(partial(self._give_up, f"cannot start a session: {error}"))
        else:
            self._mail.put(partial(self._begin, launcher))
        threading.Event().wait()  # for ever: see above

    def _show(self, launcher: RayProcLauncher | Plugged, view: View) -> None:
        ranks = {proc_id: rank for rank, proc_id in enumerate(self._ids)}
        try:
            for chunk in launcher.follow(self._ids):
                rank, fd = ranks[chunk.proc_id], _FDS[chunk.stream]
                if chunk.skipped:
                    view.cut(rank, fd)
                view.show(rank, fd, chunk.data)
                for words in words_of(chunk):
                    self._screen.say(words)
            view.finish()
        except OutputAbandonedError:
            pass
        except Exception as error:  # noqa: BLE001  # the procs go on without it
            self._mail.put(partial(self._output_lost, error))
        self._mail.put(self._output_ended)

    def _hear_of(self, rank: int, result: ProcExitResult) -> None:
        self._mail.put(partial(self._ended, rank, result))

    def _hear_of_start(self, started: int, reason: str) -> None:
        self._mail.put(partial(self._progress.started, started, reason))

    def _hear_of_input(self, why: str) -> None:
        self._mail.put(partial(self._input_lost, why))

    def _take_signals(self) -> None:
        deliver_to(lambda number: self._mail.put(partial(self._signalled, number)))

    # -- what may come --------------------------------------------------------------------------------------------

    def _begin(self, launcher: RayProcLauncher | Plugged) -> None:
        self._launcher = launcher
        try:
            launched = self._job.launch(launcher)
        except (ProcLauncherError, TypeError, ValueError) as error:
            self._give_up(str(error))
            return
        self._ids = [each.proc_id for each in launched]
        ports = [each.exit_port for each in launched]
        self._account.begin(ports)
        self._running = set(range(len(ports)))
        for rank, port in enumerate(ports):
            port.add_done_callback(partial(self._hear_of, rank))
        view: View = Plain(self._screen) if len(self._ids) == 1 else Prefixed(self._screen)
        self._shower = threading.Thread(target=self._show, args=(launcher, view), name="output", daemon=True)
        self._shower.start()
        self._progress.begin(len(self._ids))
        if isinstance(launcher, Plugged):
            return  # there is nothing more to be seen of its procs
        if self._feed is not None:
            self._feed.begin(launcher.stdin(self._ids[0]), self._hear_of_input, lambda: None)
        self._watch = Watch(launcher, self._ids, self._hear_of_start, restarts=self._job.restarts)

    def _give_up(self, why: str) -> None:
        self._screen.say(why)
        self._verdict = outcome.LAUNCHER_ERROR
        self._over = True

    def _ended(self, rank: int, result: ProcExitResult) -> None:
        self._running.discard(rank)
        if not is_spare(result):
            self._progress.ended(ok=result.ok)
        if self._account.add(rank, result) and self._running:
            self._later(_NOTICE, self._tell_of_first)
        self._check_over()

    def _tell_of_first(self) -> None:
        if self._running and not self._ending:
            self._account.tell_of_first(len(self._running))

    def _output_ended(self) -> None:
        self._showing = False
        self._check_over()

    def _output_lost(self, error: Exception) -> None:
        self._screen.say(f"cannot read the output any more: {error}")
        self._verdict = outcome.LAUNCHER_ERROR

    def _input_lost(self, why: str) -> None:
        self._stop_feeding()
        self._screen.say(f"cannot pass stdin on any more: {why}")
        self._verdict = outcome.LAUNCHER_ERROR
        self._terminate()

    def _stop_feeding(self) -> None:
        """Our terminal is as it was, and we have it back."""
        if self._feed is not None:
            self._feed.end()

    def _output_closed(self, error: OSError) -> None:
        """End quietly, as a program that wrote there itself would; after Ctrl-C the reader has just gone first."""
        if self._ending:
            return
        self._verdict = code_of_closed(self._screen, error)
        self._screen.abandoned.set()
        self._terminate()

    def _signalled(self, number: int) -> None:
        """Only Ctrl-C escalates: a closing terminal, or a service manager, may well signal more than once."""
        if self._launcher is None:
            os._exit(outcome.BY_SIGNAL + number)  # nothing runs yet, and Ray's processes, if ours, end with this one
        self._stop_feeding()
        if not self._running:
            self._hurry()
        elif self._account.asked is None:
            if number == signal.SIGHUP and self._feed is not None:
                self._hang_up()
            self._account.ask(number)
            self._tell(f"terminating {procs(len(self._running))}, Ctrl-C again to kill", number)
            self._terminate()
        elif number == signal.SIGINT and not self._account.killing:
            self._account.killing = True
            self._tell(f"killing {procs(len(self._running))}", number)
            self._kill()
        elif number == signal.SIGINT:
            self._hurry()

    def _hang_up(self) -> None:
        """Shells that talk to a terminal do not heed SIGTERM."""
        with contextlib.suppress(ProcLauncherError):
            if isinstance(self._launcher, RayProcLauncher):
                self._launcher.signal(self._ids[0], signal.SIGHUP)

    def _hurry(self) -> None:
        """There is nothing left to end, or it does not answer: show no more, and wait no longer."""
        if not self._screen.abandoned.is_set():
            self._screen.abandoned.set()
            self._later(_LEAVE_NOW, self._walk_out)
            self._output_ended()

    def _walk_out(self) -> None:
        self._screen.say(f"not waiting for {procs(len(self._running))} any longer")
        self._verdict = outcome.BY_SIGNAL + signal.SIGKILL
        self._over = True

    # -- the end --------------------------------------------------------------------------------------------------

    @property
    def _ending(self) -> bool:
        return self._account.asked is not None or self._verdict is not None

    def _check_over(self) -> None:
        self._over = self._over or (not self._running and not self._showing)

    def _later(self, seconds: float, what: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, self._mail.put, [what])
        timer.daemon = True
        timer.start()

    def _tell(self, text: str, number: int) -> None:
        self._screen.say(text, after_control_c=number == signal.SIGINT)

    def _terminate(self) -> None:
        with contextlib.suppress(ProcLauncherError):  # the spawner is gone: the ports will say so
            self._job.terminate(self._running, self._grace)

    def _kill(self) -> None:
        with contextlib.suppress(ProcLauncherError):  # the same
            self._job.kill(self._running)

    def _conclude(self) -> int:
        """Say what there is to say, and choose the exit code."""
        self._progress.finish()
        self._stop_feeding()
        if self._verdict is not None:
            return self._verdict
        return self._account.conclude()

    def _leave(self, code: int) -> None:
        """Leave nothing behind, in bounded time. Signals have no effect any more, to the very end."""
        ignore()
        self._stop_feeding()
        patience = _LEAVE_NOW if self._running and self._account.killing else _LEAVE
        deadline = threading.Timer(patience, os._exit, [code])
        deadline.daemon = True
        deadline.start()
        with contextlib.suppress(Exception):  # the cluster may be gone, and with it all that is to be ended
            if self._watch is not None:
                self._watch.stop(1.0)  # not in Ray while that is shut down
            if self._launcher is not None:
                self._launcher.close(0)
            if self._shower is not None:
                self._shower.join(1.0)  # unless it hangs in a write; the same
            if self._feed is not None:
                self._feed.join(1.0)
            leave(code)
        deadline.cancel()
