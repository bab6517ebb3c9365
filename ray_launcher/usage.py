"""`ProcUsage`: what one proc takes of its node at one moment."""

from __future__ import annotations

import dataclasses

from ray_launcher.info import ProcInfo


@dataclasses.dataclass(frozen=True)
class ProcUsage:
    """The whole tree of one proc that has not ended; None where its node has not said, or it is not on one yet.

    when: seconds of its node's monotonic clock.  processes: those that live.  cpu_seconds: user and system time of all,
    those included that have ended and been waited for by others of the tree.  memory: bytes, the resident set (RSS) of
    each added up: pages that several share count for each.  gpu_memory: bytes, as NVML tells; None where the node has
    no NVML, or not the package nvidia-ml-py. In a container NVML may know other pids than we do, and it is 0.
    """

    info: ProcInfo
    when: float | None = None
    processes: int | None = None
    cpu_seconds: float | None = None
    memory: int | None = None
    gpu_memory: int | None = None

    def cpu_percent(self, earlier: ProcUsage | None) -> float | None:
        """Of one CPU, on average since an earlier look: 250.0 is two and a half CPUs. None: cannot be told.

        Earlier and later are to be looks at the same start of a proc. What a process that was orphaned had used goes
        with it, so a look after its end may tell too little, but never less than 0.
        """
        if earlier is None or (earlier.info.node_id, earlier.info.pid) != (self.info.node_id, self.info.pid):
            return None
        if self.when is None or earlier.when is None or self.cpu_seconds is None or earlier.cpu_seconds is None:
            return None
        seconds = self.when - earlier.when
        return max(0.0, self.cpu_seconds - earlier.cpu_seconds) / seconds * 100 if seconds > 0 else None
