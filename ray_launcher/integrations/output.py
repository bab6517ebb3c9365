"""Showing on this process's own stdout and stderr what procs write."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

from ray_launcher.errors import ProcLauncherError
from ray_launcher.session import RayProcLauncher


@contextlib.contextmanager
def shown(launcher: RayProcLauncher, prefixes: Mapping[str, str], leave_out: str = "\0") -> Iterator[None]:
    """Print whole lines of these procs as they come, each behind its prefix, until all that they wrote is there.

    prefixes: by proc_id.  leave_out: lines that begin so are not shown.
    """
    begun: dict[tuple[str, str], bytes] = {}

    def show() -> None:
        with contextlib.suppress(ProcLauncherError):  # the session is over
            for chunk in launcher.follow(prefixes):
                *lines, rest = (begun.pop((chunk.proc_id, chunk.stream), b"") + chunk.data).split(b"\n")
                begun[chunk.proc_id, chunk.stream] = rest
                _print(prefixes[chunk.proc_id], chunk.stream, lines, leave_out)
        for (proc_id, stream), rest in begun.items():
            _print(prefixes[proc_id], stream, [rest] if rest else [], leave_out)

    shower = threading.Thread(target=show, name="output", daemon=True)
    shower.start()
    yield
    shower.join()


def _print(prefix: str, stream: str, lines: Sequence[bytes], leave_out: str) -> None:
    texts = [line.decode("utf-8", "replace") for line in lines]
    wanted = "".join(f"{prefix}{text}\n" for text in texts if not text.startswith(leave_out))
    if wanted:
        file = sys.stderr if stream == "stderr" else sys.stdout
        file.write(wanted)
        file.flush()
