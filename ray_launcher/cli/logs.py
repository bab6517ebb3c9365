"""`ray-launcher logs`: what procs have written, and what they write, as it comes.

Ray is asked in threads of their own, so that Ctrl-C need not wait for it; the main thread shows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import select
import string
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

import click

from ray_launcher import LogChunk, ProcInfo, ProcLauncherError, RayProcLauncher
from ray_launcher.cli.connect import ConnectError, connect, leave
from ray_launcher.cli.limits import duration
from ray_launcher.cli.outcome import BY_SIGNAL, LAUNCHER_ERROR
from ray_launcher.cli.output import STDERR, STDOUT, Lines, Plain, Screen, View, behind, code_of_closed, words_of
from ray_launcher.cli.sessions import chosen, session_options, verb
from ray_launcher.cli.signals import deliver_to

_FIELDS = ("name", "rank", "node", "session")
_FDS = {"stdout": STDOUT, "stderr": STDERR}
#: Pieces of output that may wait to be shown; each has a megabyte at most.
_AHEAD = 16
#: Seconds of silence after which we look whether anybody is left who reads.
_LOOK = 0.5

_LOGS = """Show what procs have written: stdout on stdout, stderr on stderr.

TARGET is the id of a proc, the name of a gang or run for all its ranks, or that with some of them, as in train/0-3.
Procs that have ended are shown as long as their session remembers them.

One proc's output is untouched. Of several, whole lines are shown, each behind a prefix: "[RANK] ", or "[NAME] " where
they are not ranks of the same gang or run. With -f this ends when all the procs have, or with Ctrl-C.

\b
Examples:
  ray-launcher logs train/0
  ray-launcher logs -f --tail 20 train
  ray-launcher logs -t --since 10m --stderr train/0-3
  ray-launcher logs --prefix '{name} on {node}: ' train server
  ray-launcher logs --json train | jq -r 'select(.stream == "stderr") | .line'

Times are those at which a line was there at the latest, by the clock of its node; good to a second, to five after a
silence.

Exit code: 0; 130 after Ctrl-C; 141 when the reader has gone, as after `| head`; 125 for errors, also where a node is
lost, and with it what has not been read.
"""


def _since(value: str) -> datetime | timedelta:
    """``10m``: so long ago; or a time in ISO 8601, local where it names no zone."""
    try:
        return timedelta(seconds=duration(value))
    except (click.BadParameter, OverflowError):
        pass
    try:
        return datetime.fromisoformat(value.removesuffix("Z") + "+00:00" * value.endswith("Z")).astimezone()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is not a time; write how long ago, as in 90, 10m or 1.5h, or a time as 2026-11-25T20:17:20"
        ) from None


def _template(value: str) -> str:
    try:
        fields = [field for _, field, spec, conversion in string.Formatter().parse(value) if field is not None]
        decorated = any(spec or conversion for _, _, spec, conversion in string.Formatter().parse(value))
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}; write {{{{ and }}}} for braces") from None
    known = ", ".join(f"{{{field}}}" for field in _FIELDS)
    for field in fields:
        if field not in _FIELDS or decorated:
            raise click.BadParameter(f"{value!r}: there is no {{{field}}}; write {known}, plainly")
    if "\n" in value:
        raise click.BadParameter("a line has one prefix: leave the newline out")
    return value


@verb("logs", "Show what procs have written, or write.", _LOGS)
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("-f", "--follow", is_flag=True, help="Go on with what they write, until they end.")
@click.option(
    "-n", "--tail", type=click.IntRange(min=0), metavar="N", help="Begin with the last N lines of each stream."
)
@click.option(
    "--since",
    type=_since,
    metavar="TIME",
    help="Leave out what is older: how long ago, as in 90, 10m or 1.5h, or a time as 2026-11-25T20:17:20.",
)
@click.option("--stdout", is_flag=True, help="Only stdout.")
@click.option("--stderr", is_flag=True, help="Only stderr.")
@click.option("-t", "--timestamps", is_flag=True, help="Each line behind its time, in UTC.")
@click.option(
    "--prefix",
    type=_template,
    metavar="TEMPLATE",
    help="What is put before each line; {name}, {rank}, {node} and {session} are those of its proc. '' for nothing.",
)
@click.option("--json", "json_", is_flag=True, help="Each line as a JSON object, on stdout.")
@session_options
def logs(  # noqa: PLR0913  # one argument per option
    *,
    targets: Sequence[str],
    stdout: bool,
    stderr: bool,
    prefix: str | None,
    json_: bool,
    session: str | None,
    address: str | None,
    **how: Any,
) -> None:
    """See `_LOGS`."""
    if json_ and prefix is not None:
        raise click.UsageError("--json has no prefixes; leave --prefix out")
    streams = ["stdout"] * (stdout or not stderr) + ["stderr"] * (stderr or not stdout)
    look = partial(_view, prefix=prefix, json_=json_, timestamps=how["timestamps"])
    leave(_Reading(partial(chosen, session, targets), address, look, {"streams": streams, **how}).execute())


class _Source(NamedTuple):
    """A proc that is shown."""

    session: str
    info: ProcInfo

    @property
    def rank(self) -> int | None:
        """In its gang or run."""
        _, slash, number = self.info.proc_id.rpartition("/")
        return int(number) if slash and number.isdecimal() and self.info.rank is None else self.info.rank


def _view(screen: Screen, sources: Sequence[_Source], prefix: str | None, json_: bool, timestamps: bool) -> View:
    if json_:
        return Lines(screen, partial(_json_lines, sources), all_to=STDOUT)
    if prefix is None and len(sources) == 1:
        if not timestamps:
            return Plain(screen)
        prefix = ""
    texts = [_prefix(prefix or _default(sources), source) if prefix != "" else b"" for source in sources]
    return Lines(screen, behind(lambda rank, _fd, time: texts[rank] + _stamp(time)))


def _default(sources: Sequence[_Source]) -> str:
    names = {(source.session, source.info.proc_id.rpartition("/")[0]) for source in sources}
    ranks = {source.rank for source in sources}
    return "[{name}] " if len(names) > 1 or None in ranks or len(ranks) < len(sources) else "[{rank}] "


def _prefix(template: str, source: _Source) -> bytes:
    info = source.info
    rank = "" if source.rank is None else source.rank
    text = template.format(name=info.proc_id, rank=rank, node=info.node_ip or "", session=source.session)
    return text.replace("\n", " ").encode(errors="surrogateescape")


def _stamp(time: datetime | None) -> bytes:
    return b"" if time is None else _iso(time).encode() + b" "


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json_lines(sources: Sequence[_Source], rank: int, fd: int, time: datetime | None, lines: bytes) -> bytes:
    source = sources[rank]
    facts: dict[str, object] = {"proc_id": source.info.proc_id, "stream": "stdout" if fd == STDOUT else "stderr"}
    facts |= {"rank": source.rank, "node": source.info.node_ip, **({"time": _iso(time)} if time else {})}
    texts = lines.decode("utf-8", "replace").split("\n")
    return "".join(json.dumps({**facts, "line": text}) + "\n" for text in texts).encode()


@dataclasses.dataclass
class _Reading:
    """One command. choose: finds the procs.  look(screen, sources): how they are shown.  how: see `output`."""

    choose: Callable[[], Sequence[tuple[RayProcLauncher, ProcInfo]]]
    address: str | None
    look: Callable[[Screen, Sequence[_Source]], View]
    how: dict[str, Any]

    def __post_init__(self) -> None:
        self._mail: queue.Queue[Callable[[], object]] = queue.Queue(_AHEAD)
        self._screen = Screen(on_closed=lambda error: os._exit(code_of_closed(self._screen, error)))
        self._readers = 1  # threads that may still bring something
        self._code = 0

    def execute(self) -> int:
        """Do all of it; the exit code. Raises `click.ClickException`."""
        _end_at_signals()
        self._begin(self._connect)
        while self._readers:
            try:
                self._mail.get(timeout=_LOOK)()
            except queue.Empty:
                if _has_gone(STDOUT):
                    return BY_SIGNAL + 13  # SIGPIPE
        self._view.finish()
        return self._code

    def _begin(self, work: Callable[..., None], *args: object) -> None:
        def working() -> None:
            try:
                work(*args)
            except (ConnectError, ProcLauncherError) as error:
                self._mail.put(partial(_raise, click.ClickException(str(error))))
            except Exception as error:  # noqa: BLE001  # the main thread's to tell
                self._mail.put(partial(_raise, error))
            self._mail.put(self._done)

        threading.Thread(target=working, name="logs", daemon=True).start()

    def _done(self) -> None:
        self._readers -= 1

    def _connect(self) -> None:
        connect(self.address, start=False)
        self._mail.put(_end_at_signals)  # Ray has just put its own handlers before ours
        found = {(launcher.session, info.proc_id): (launcher, info) for launcher, info in self.choose()}
        self._mail.put(partial(self._show_all, list(found.values())))

    def _show_all(self, found: Sequence[tuple[RayProcLauncher, ProcInfo]]) -> None:
        self._view = self.look(self._screen, [_Source(launcher.session, info) for launcher, info in found])
        for launcher in {launcher.session: launcher for launcher, _ in found}.values():
            numbers = {info.proc_id: number for number, (other, info) in enumerate(found) if other is launcher}
            self._readers += 1
            self._begin(self._read, launcher, numbers)

    def _read(self, launcher: RayProcLauncher, numbers: dict[str, int]) -> None:
        for chunk in launcher.output(numbers, **self.how):
            self._mail.put(partial(self._show, numbers[chunk.proc_id], chunk))

    def _show(self, number: int, chunk: LogChunk) -> None:
        fd = _FDS[chunk.stream]
        if chunk.skipped:
            self._view.cut(number, fd)
        if chunk.lost:
            self._code = LAUNCHER_ERROR
        for words in words_of(chunk):
            self._screen.say(words)
        self._view.show(number, fd, chunk.data, chunk.time)


def _end_at_signals() -> None:
    """At once: nothing of ours is left anywhere."""
    deliver_to(lambda number: os._exit(BY_SIGNAL + number))


def _has_gone(fd: int) -> bool:
    """Whether nobody can read any more what is written there."""
    poll = select.poll()
    poll.register(fd, 0)  # errors are always told
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _raise(error: BaseException) -> None:
    raise error
