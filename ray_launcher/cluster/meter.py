"""How an agent looks at what the procs of its supervisor use."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from ray_launcher.cluster.keeper import Keeper
from ray_launcher.node.proctable import stat
from ray_launcher.node.usage import Looks, proportional_memory


class Use(NamedTuple):
    """What one tree uses; see `ProcUsage`."""

    when: float
    processes: int
    cpu_seconds: float
    memory: int
    gpu_memory: int | None


class Meter:
    """Looks at the procs of one agent's supervisor."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._looks = Looks()
        self._gpus = Gpus()
        self._one_by_one = asyncio.Lock()

    async def read(self) -> dict[str, Use]:
        """By token, of all that run."""
        leaders = {started.pid: token for token, started in self._keeper.running.items() if started.pid}
        async with self._one_by_one:
            return await asyncio.get_running_loop().run_in_executor(
                None, self._read, self._keeper.supervisor_pid, leaders
            )

    async def supervisor_bytes(self) -> int:
        """Of the supervisor and its guard."""
        return await asyncio.get_running_loop().run_in_executor(None, _supervisor_bytes, self._keeper.supervisor_pid)

    def _read(self, supervisor: int, leaders: Mapping[int, str]) -> dict[str, Use]:
        when = time.monotonic()
        trees = self._looks.take(supervisor, leaders) if leaders else {}
        gpus = self._gpus.by_pid() if leaders else None
        return {
            token: Use(
                when,
                len(tree.pids),
                tree.cpu,
                tree.memory,
                None if gpus is None else sum(gpus.get(pid, 0) for pid in tree.pids),
            )
            for token, tree in trees.items()
        }


class Gpus:
    """The memory that processes have on the GPUs of this node, where NVML and the package nvidia-ml-py are there."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._missing = False

    def by_pid(self) -> dict[int, int] | None:
        """Bytes; None: it cannot be told."""
        if self._nvml is None and not self._missing:
            self._nvml = _nvml()
            self._missing = self._nvml is None
        if self._missing:
            return None
        try:
            return self._count()
        except self._nvml.NVMLError:
            return None  # the driver is being replaced, say: the next look may do

    def _count(self) -> dict[int, int]:
        nvml, used = self._nvml, dict[int, int]()
        for index in range(nvml.nvmlDeviceGetCount()):
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            on_device = dict[int, int]()  # what computes and draws is in both lists
            for listed in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
                with contextlib.suppress(nvml.NVMLError):  # a device that has no such list
                    on_device.update({process.pid: process.usedGpuMemory or 0 for process in listed(device)})
            for pid, size in on_device.items():
                used[pid] = used.get(pid, 0) + size
        return used


def _nvml() -> Any:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def _supervisor_bytes(supervisor: int) -> int:
    found = stat(supervisor) if supervisor else None
    return 0 if found is None else proportional_memory((supervisor, found.ppid))
