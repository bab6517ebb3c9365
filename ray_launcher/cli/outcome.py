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
#: What the last lines of a stderr tail begin with that are not the program's, but of its time limit.
_OWN = "[ray_launcher] "
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


def limit_words(result: ProcExitResult) -> str:
    """What a time limit had to do with this end, as ``; time limit of 60 s reached: SIGTERM sent``; else ""."""
    found: list[str] = []
    for line in reversed(result.stderr_tail or []):
        if not line.startswith(_OWN):
            break
        found.insert(0, "; " + line.removeprefix(_OWN))
    return "".join(found)


def summary_of_one(result: ProcExitResult) -> str | None:
    """None for what the program has said itself: its stderr has been shown, and its exit code is ours."""
    words = limit_words(result)
    match result.kind:
        case Failed(reason):
            return (reason or str(result)) + words
        case Signaled():
            return f"the program was {result}{words}"
    return f"the program {result}{words}" if words else None


def summary_of_limits(limited: Sequence[tuple[int, ProcExitResult]], nprocs: int) -> str | None:
    """The same where nothing failed, for (rank, result) of those whose time limit has had its say."""
    if not limited or nprocs == 1:
        return summary_of_one(limited[0][1]) if limited else None
    rank, first = limited[0]
    others = f"; so of {len(limited)} of {nprocs} ranks in all" if len(limited) > 1 else ""
    return f"rank {rank} of {nprocs}: {first}{limit_words(first)}{others}"


def summary_of_many(failures: Sequence[tuple[int, ProcExitResult]], nprocs: int, address: str | None = None) -> str:
    """The first failure with its last words, and who else failed.

    failures: (rank, result), the first one first.  address: of the node where that was, if known.
    """
    rank, first = failures[0]
    where = f" on {address}" if address else ""
    text = f"rank {rank} of {nprocs}{where}"
    if len(failures) > 1:
        ranks = sorted(rank for rank, _ in failures)
        named = ", ".join(map(str, ranks[:_RANKS_NAMED])) + (", ..." if len(ranks) > _RANKS_NAMED else "")
        text = f"{len(failures)} of {nprocs} ranks failed ({named}), the first of them rank {rank}{where}"
    tail = (first.stderr_tail or [])[-TAIL_LINES:]
    return "\n".join([f"{text}: {first}", *(f"  {line}" for line in tail)])


def notice(rank: int, result: ProcExitResult, running: int, *, ended: bool = False) -> str:
    """The first failure soon after it happened, for those who watch the others. ended: those are being ended."""
    others = "1 other" if running == 1 else f"{running} others"
    if ended:
        return f"rank {rank}: {result}; terminating {others}"
    return f"rank {rank}: {result}; {others} {'runs' if running == 1 else 'run'} on"
