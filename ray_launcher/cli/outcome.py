"""What a run's end means to a shell: its exit code, and the words for a failure."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import ray

from ray_launcher import Exited, ExitPort, Failed, ProcExitResult, Signaled

#: The launcher's own failures, as `docker run` and `env` have it; 126 and 127 are those of exec.
LAUNCHER_ERROR, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
#: Added to a signal's number, as shells do.
BY_SIGNAL = 128

#: Lines of stderr that a summary repeats.
TAIL_LINES = 20
#: Ranks that a summary names.
_RANKS_NAMED = 8
#: Seconds for a report that has arrived already to be fetched.
_FETCH = 10.0


def exit_code(result: ProcExitResult, port: ExitPort) -> int:
    """The exit code of a command that stands for this proc."""
    match result.kind:
        case Exited(code) if 0 <= code <= 255:
            return code
        case Signaled(signal):
            return BY_SIGNAL + signal
        case Failed():
            return _exec_code(port)
    return LAUNCHER_ERROR


def _exec_code(port: ExitPort) -> int:
    """126 or 127 where the spawner says so, beside the reason; a result has no place for it."""
    with contextlib.suppress(Exception):  # there may be no report at all, nor a cluster to ask
        code = ray.get(port.ref, timeout=_FETCH).exit_code
        if code in (NOT_EXECUTABLE, NOT_FOUND):
            return int(code)
    return LAUNCHER_ERROR


def summary_of_one(result: ProcExitResult) -> str | None:
    """None for what the program has said itself: its stderr has been shown, and its exit code is ours."""
    if isinstance(result.kind, Exited):
        return None
    return f"the program {_ended(result)}" if isinstance(result.kind, Signaled) else str(result)


def summary_of_many(failures: Sequence[tuple[int, ProcExitResult]], nprocs: int) -> str:
    """The first failure with its last words, and who else failed. `failures`: (rank, result), in order of arrival."""
    rank, first = failures[0]
    text = f"rank {rank} of {nprocs} {_ended(first)}"
    if len(failures) > 1:
        others = sorted(rank for rank, _ in failures[1:])
        named = ", ".join(map(str, others[:_RANKS_NAMED])) + (", ..." if len(others) > _RANKS_NAMED else "")
        text += f", the first of {len(failures)} that failed (then {named})"
    if first.stderr_tail:
        tail = "".join(f"\n  {line}" for line in first.stderr_tail[-TAIL_LINES:])
        text += f"; its last lines on stderr:{tail}"
    return text


def notice(rank: int, result: ProcExitResult, running: int) -> str:
    """The first failure at the moment when it happens, for those who watch the others go on."""
    others = "1 other runs on" if running == 1 else f"{running} others run on"
    return f"rank {rank} {_ended(result)}; {others}"


def _ended(result: ProcExitResult) -> str:
    verb = "was " if isinstance(result.kind, Signaled) else ""
    return f"{verb}{result}"
