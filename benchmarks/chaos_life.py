"""The program that `chaos.py` launches: it lives as its arguments say, and writes down what happens to it.

Usage: chaos_life.py DIRECTORY NAME SECONDS END ON_TERM ESCAPES LINES, run with `python -I -S`; `chaos_lives.Life`
describes the last five. Each stamp is one line, appended to DIRECTORY/NAME with one write, so that the lines of a
second start or of another process cannot mix with it: a word, the monotonic clock, the pid, and more.

    start    when it runs: start time in ticks, the parent's pid (its supervisor's), the node's name
    escaped  the same for its grandchild
    beat     every second, from both
    exit     the last thing it does: its exit code
    term     the same, because it got a TERM
    signal   the last thing it does: the signal that it sends itself
"""

from __future__ import annotations

import os
import signal
import sys
import time

#: Seconds between two beats; seconds after which an escaped grandchild that nobody ends leaves by itself.
BEAT, LIMIT = 1.0, 600.0


class Stamps:
    """The file of one launch."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, word: str, *more: object) -> None:
        """One line."""
        fields = (word, f"{time.monotonic():.4f}", os.getpid(), *more)
        os.write(self._file, (" ".join(map(str, fields)) + "\n").encode())


def start_ticks() -> str:
    """When this process started; with its pid its name for ever."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[19]


def escape(stamps: Stamps, ignores_term: bool) -> None:
    """Leave a grandchild that is in a session of its own and has no parent any more."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the grandchild has its own way with one
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignores_term else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    stamps.write("escaped", start_ticks())
    for _ in range(int(LIMIT / BEAT)):
        time.sleep(BEAT)
        stamps.write("beat")
    os._exit(0)


def live(stamps: Stamps, name: str, seconds: float, lines: int) -> None:
    """Write the lines to stderr, evenly over the time, and a beat every second."""
    begin = time.monotonic()
    todo = [(seconds * n / lines, f"{name} {n}\n".encode()) for n in range(lines)]
    todo += [(n * BEAT, b"") for n in range(1, int(seconds / BEAT) + 1)]
    for when, line in sorted(todo, key=lambda item: item[0]):
        time.sleep(max(0.0, begin + when - time.monotonic()))
        if line:
            os.write(2, line)
        else:
            stamps.write("beat")
    time.sleep(max(0.0, begin + seconds - time.monotonic()))


def main(directory: str, name: str, *life: str) -> None:
    """Live; does not return."""
    seconds, end, on_term, escapes, lines = life
    stamps = Stamps(f"{directory}/{name}")

    def leave(_signum: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        code = int(on_term.split()[1])
        stamps.write("term", code)
        os._exit(code)

    if on_term != "dies":
        signal.signal(signal.SIGTERM, signal.SIG_IGN if on_term == "ignores" else leave)
    stamps.write("start", start_ticks(), os.getppid(), os.environ.get("CHAOS_NODE", "?"))
    if escapes != "no":
        escape(stamps, escapes == "ignores")
    live(stamps, name, float(seconds), int(lines))
    word, number = end.split()
    if on_term.startswith("exit"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one end is enough
    stamps.write(word, number)
    if word == "exit":
        os._exit(int(number))
    if int(number) != signal.SIGKILL:
        signal.signal(int(number), signal.SIG_DFL)
    os.kill(os.getpid(), int(number))


if __name__ == "__main__":
    main(*sys.argv[1:])
