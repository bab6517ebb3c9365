"""Watching a launch until every proc has started: how many have, and for what the others wait."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from ray_launcher import ProcInfo, RayProcLauncher

#: Seconds between two looks, and before the first: most launches are over by then.
_LOOK = 1.0


class Watch:
    """Looks at procs about once a second, in a thread of its own, until all have started.

    restarts: and after that, for some may be started again.
    tell(started, reason): how many have, and why others wait, "" where none does; called in that thread.
    """

    def __init__(
        self, launcher: RayProcLauncher, proc_ids: Sequence[str], tell: Callable[[int, str], object], *, restarts: bool
    ) -> None:
        self._launcher, self._ids, self._tell, self._restarts = launcher, proc_ids, tell, restarts
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()

    def stop(self, patience: float) -> None:
        """Look no more. Returns when that is so, at most `patience` seconds later."""
        self._stopped.set()
        self._thread.join(patience)

    def _look(self) -> None:
        ids, started = set(self._ids), 0
        while (started < len(ids) or self._restarts) and not self._stopped.wait(_LOOK):
            try:
                infos = [info for info in self._launcher.procs() if info.proc_id in ids]
            except Exception:  # noqa: BLE001  # the session is over, or Ray is: the ports tell
                break
            started = sum(info.state not in ("PENDING", "STARTING") for info in infos)
            self._tell(started, reason(infos, len(ids)))
        self._tell(started, "")


def reason(infos: Iterable[ProcInfo], nprocs: int) -> str:
    """For what procs wait, "" if none does: what most of them give as the reason, and how many wait in all."""
    reasons = [info.waits_for for info in infos if info.state == "PENDING" and info.waits_for]
    if not reasons:
        return ""
    most = Counter(reasons).most_common(1)[0][0]
    return most if nprocs == 1 else f"{len(reasons)} of {nprocs} ranks: {most}"
