"""Our own stdin and terminal as a proc's: keys and files passed on, sizes told, and everything put back afterwards."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Mapping
from typing import Any

import click

from ray_launcher import ProcLauncherError, Stdin
from ray_launcher.cli.options import together

STDIN = 0
#: Bytes of one read: of keys, there are few.
_READ = 1 << 20
#: Ctrl-P Ctrl-Q, docker's way out of an attached terminal.
_DETACH = b"\x10\x11"

#: Add -i and -t to a verb, which gets them as `interactive` and `tty`.
terminal_options = together(
    click.option("-i", "--interactive", is_flag=True, help="Pass our stdin on to it, to the end."),
    click.option("-t", "--tty", is_flag=True, help="Give it a terminal, of the size of ours. With -i, keys go there."),
)

#: The same, and --stdin, as `stdin`.
stdin_options = together(
    terminal_options,
    click.option(
        "--stdin",
        type=click.Path(exists=True, dir_okay=False, readable=True),
        metavar="FILE",
        help="Pass this file on to it as its stdin.",
    ),
)


def stdin_fields(options: Mapping[str, Any], env: dict[str, str]) -> dict[str, Any]:
    """The fields of `LaunchOptions` for them. A terminal's TERM is put into `env`. Raises `click.UsageError`."""
    if options.get("stdin") and (options["interactive"] or options["tty"]):
        raise click.UsageError("--stdin gives it a file to read; leave out -i and -t")
    if not options["tty"]:
        return {"want_stdin": True} if options["interactive"] or options.get("stdin") else {}
    if not os.isatty(STDIN):
        raise click.UsageError("-t is for a terminal, and our stdin is none; leave -t out, as in a pipe")
    env.setdefault("TERM", os.environ.get("TERM", "xterm"))
    return {"tty": True, "tty_size": size()}


def feed_of(options: Mapping[str, Any]) -> Feed | None:
    """What passes it on, None where there is nothing to pass. Raises `click.BadParameter`."""
    if options.get("stdin"):
        try:
            return Feed(os.open(options["stdin"], os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise click.BadParameter(f"cannot open it: {error.strerror}", param_hint="'--stdin'") from error
    if options["interactive"] or options["tty"]:
        return Feed(STDIN, reads=options["interactive"])
    return None


def size() -> tuple[int, int]:
    """Rows and columns of our terminal."""
    try:
        columns, rows = os.get_terminal_size(STDIN)
    except OSError:
        columns, rows = shutil.get_terminal_size()
    return max(rows, 1), max(columns, 1)


class Feed:
    """Passes what comes on `source` on to a proc, in threads of its own.

    reads: or, where not, only the sizes of our terminal to its terminal.  detach: Ctrl-P Ctrl-Q on a terminal is ours.
    Our terminal is in raw mode as long as its keys go to another one.
    """

    def __init__(self, source: int, *, reads: bool = True, detach: bool = False) -> None:
        self._source, self._reads, self._detach = source, reads, detach
        self._lock = threading.Lock()
        self._saved: list[Any] | None = None  # how our terminal was
        self._stopped = False
        self._threads: list[threading.Thread] = []
        self._stop, self._stop_in = os.pipe()
        self._window, self._window_in = os.pipe()
        os.set_blocking(self._window_in, False)

    def begin(self, stdin: Stdin, fail: Callable[[str], object], detached: Callable[[], object]) -> None:
        """Start; to be called in the main thread. `fail(why)` and `detached()` are called in another, once at most."""
        signal.signal(signal.SIGWINCH, self._resized)
        thread = threading.Thread(target=self._run, args=(stdin, fail, detached), name="stdin", daemon=True)
        self._threads.append(thread)
        thread.start()

    def end(self) -> None:
        """Pass nothing on any more, and put our terminal back. Twice does nothing."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            if self._saved is not None:
                sys.stdout.flush()
                with contextlib.suppress(termios.error):  # it is gone
                    termios.tcsetattr(self._source, termios.TCSANOW, self._saved)
        os.write(self._stop_in, b"s")

    def join(self, seconds: float) -> None:
        """Wait for the threads, so long at most: none should be in Ray when that is shut down."""
        for thread in self._threads:
            thread.join(seconds)

    def _resized(self, _number: int, _frame: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._window_in, b"w")

    def _run(self, stdin: Stdin, fail: Callable[[str], object], detached: Callable[[], object]) -> None:
        try:
            terminal = stdin.tty and os.isatty(self._source)  # waits until it runs
            if terminal:
                stdin.resize(*size())
                watch = threading.Thread(target=self._tell_sizes, args=(stdin,), name="window", daemon=True)
                self._threads.append(watch)
                watch.start()
            if self._reads and (not terminal or self._go_raw()) and self._pass_on(stdin, terminal):
                detached()
        except BrokenPipeError:
            pass  # it has ended, or does not read: what becomes of it is told elsewhere
        except (ProcLauncherError, OSError) as error:
            fail(str(error))

    def _go_raw(self) -> bool:
        with self._lock:
            if not self._stopped:
                self._saved = termios.tcgetattr(self._source)
                tty.setraw(self._source, termios.TCSANOW)
            return not self._stopped

    def _pass_on(self, stdin: Stdin, terminal: bool) -> bool:
        """To the end, or until we are stopped; True when the user wants to detach."""
        held = b""
        while True:
            ready, _, _ = select.select([self._source, self._stop], [], [])
            if self._stop in ready:
                return False
            data = os.read(self._source, _READ)
            if not data:
                stdin.close()
                return False
            if terminal and self._detach:
                data, left, _ = (held + data).partition(_DETACH)
                if left:
                    stdin.write(data)
                    return True
                held = data[-1:] if data.endswith(_DETACH[:1]) else b""
                data = data[: len(data) - len(held)]
            stdin.write(data)

    def _tell_sizes(self, stdin: Stdin) -> None:
        with contextlib.suppress(ProcLauncherError, OSError):  # it has ended
            while self._stop not in select.select([self._window, self._stop], [], [])[0]:
                os.read(self._window, 1 << 10)
                stdin.resize(*size())
