"""Showing on this process's own stdout and stderr what procs write."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ray_launcher import ProcLauncherError, RayProcLauncher


@contextlib.contextmanager
def shown(launcher: RayProcLauncher, prefixes: Mapping[str, str], skip: int = 0) -> Iterator[None]:
    """Print whole lines of these procs as they come, each behind its prefix, until all that they wrote is there.

    prefixes: by proc_id.  skip: so many lines of each stdout are not shown.
    """
    skipped = Counter[str]()
    begun: dict[tuple[str, str], bytes] = {}

    def show() -> None:
        with contextlib.suppress(ProcLauncherError):  # the session is over
            for chunk in launcher.follow(prefixes):
                *lines, rest = (begun.pop((chunk.proc_id, chunk.stream), b"") + chunk.data).split(b"\n")
                begun[chunk.proc_id, chunk.stream] = rest
                if chunk.stream == "stdout" and skipped[chunk.proc_id] < skip:
                    lines, few = lines[skip - skipped[chunk.proc_id] :], len(lines)
                    skipped[chunk.proc_id] += few
                _print(prefixes[chunk.proc_id], chunk.stream, lines)
        for (proc_id, stream), rest in begun.items():
            _print(prefixes[proc_id], stream, [rest] if rest else [])

    shower = threading.Thread(target=show, name="output", daemon=True)
    shower.start()
    yield
    shower.join()


def _print(prefix: str, stream: str, lines: Sequence[bytes]) -> None:
    if lines:
        file = sys.stderr if stream == "stderr" else sys.stdout
        file.write("".join(f"{prefix}{line.decode('utf-8', 'replace')}\n" for line in lines))
        file.flush()
