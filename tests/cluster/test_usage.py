"""What procs use: CPU time, memory and processes of their whole trees, asked once per node."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from node_rig import until
from ray_rig import DEADLINE, Nodes, living, python, shell, starts_writing

from ray_launcher import Placement, ProcUsage, RayProcLauncher
from ray_launcher.cluster.meter import Gpus
from ray_launcher.info import ProcInfo

BUSY = "print('READY', flush=True)\nwhile True: pass"
LARGE = "held = b'x' * (64 << 20)\nprint('READY', flush=True)\nimport signal; signal.pause()"


def used(launcher: RayProcLauncher, proc_id: str) -> ProcUsage:
    return {each.info.proc_id: each for each in launcher.usage()}[proc_id]


def test_a_busy_proc_uses_cpu_and_an_idle_one_does_not(shared: RayProcLauncher, nodes: Nodes) -> None:
    idle = "print('READY', flush=True)\nimport signal; signal.pause()"
    with living(shared, "busy", python(BUSY, nodes.on("a"))), living(shared, "idle", python(idle, nodes.on("b"))):
        starts_writing(shared, "busy", "idle")
        until(lambda: all(each.cpu_seconds is not None for each in shared.usage()), "figures", DEADLINE)
        first = {each.info.proc_id: each for each in shared.usage()}

        def busy() -> bool:
            percent = used(shared, "busy").cpu_percent(first["busy"])
            return percent is not None and percent > 10

        until(busy, "it is busy", DEADLINE)
        assert used(shared, "idle").cpu_percent(first["idle"]) == pytest.approx(0, abs=5)


def test_memory_is_that_of_the_tree(shared: RayProcLauncher, nodes: Nodes) -> None:
    child = f'{sys.executable} -I -S -c "{LARGE}" & wait'
    with living(shared, "large", shell(child, nodes.on("a"))):
        starts_writing(shared, "large")
        now = used(shared, "large")
        assert now.processes == 2
        assert now.memory is not None
        assert 64 << 20 < now.memory < 256 << 20


def test_an_orphan_belongs_to_its_proc(shared: RayProcLauncher, nodes: Nodes) -> None:
    """In a session of its own, below the supervisor: only its cookie tells whose it is."""
    script = "(setsid sh -c 'echo READY; exec sleep 9999' &); exec sleep 9999"
    with living(shared, "orphaned", shell(script, nodes.on("a"))):
        starts_writing(shared, "orphaned")
        until(lambda: used(shared, "orphaned").processes == 2, "both", DEADLINE)


def test_cpu_time_of_children_that_have_ended_stays(shared: RayProcLauncher, nodes: Nodes) -> None:
    burn = f"{sys.executable} -I -S -c 'import time\nwhile time.process_time() < 0.3: pass'"
    with living(shared, "waits", shell(f"{burn}; echo READY; sleep 9999", nodes.on("a"))):
        starts_writing(shared, "waits")
        seconds = used(shared, "waits").cpu_seconds
        assert seconds is not None
        assert seconds > 0.2  # the kernel counts in hundredths


def test_a_proc_that_waits_for_its_node_has_no_figures(shared: RayProcLauncher) -> None:
    with living(shared, "waits", shell("true", Placement(num_cpus=99))):
        until(lambda: shared.info("waits").state == "PENDING", "it waits", DEADLINE)
        now = used(shared, "waits")
        assert (now.processes, now.cpu_seconds, now.memory, now.gpu_memory) == (None, None, None, None)


def test_what_has_ended_is_not_told(shared: RayProcLauncher) -> None:
    shared.launch("short", shell("exit")).exit_port.wait(DEADLINE)
    assert "short" not in {each.info.proc_id for each in shared.usage()}


@pytest.mark.parametrize(
    "earlier, percent",
    [
        ((10.0, 1.0, 7), 50.0),
        ((10.0, 4.0, 7), 0.0),  # what an orphan had used has gone with it
        ((12.0, 1.0, 7), None),  # the same look
        ((10.0, 1.0, 6), None),  # it has been started again
    ],
)
def test_cpu_percent_is_of_one_cpu_since_the_earlier_look(
    earlier: tuple[float, float, int], percent: float | None
) -> None:
    def look(when: float, seconds: float, pid: int) -> ProcUsage:
        return ProcUsage(ProcInfo("a", "RUNNING", "node", "ip", pid), when, 1, seconds, 0)

    assert look(12.0, 2.0, 7).cpu_percent(look(*earlier)) == percent
    assert look(12.0, 2.0, 7).cpu_percent(None) is None


class NVMLError(Exception):
    pass


def nvml(**replaced: Any) -> types.SimpleNamespace:
    """Two devices: process 7 computes and draws on one, and computes on the other, where 8 does not say."""

    def process(pid: int, size: int | None) -> types.SimpleNamespace:
        return types.SimpleNamespace(pid=pid, usedGpuMemory=size)

    facts = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetComputeRunningProcesses": [
            [process(7, 100)],
            [process(7, 10), process(8, None)],
        ].__getitem__,
        "nvmlDeviceGetGraphicsRunningProcesses": [[process(7, 100)], []].__getitem__,
    }
    return types.SimpleNamespace(**{**facts, **replaced})


def refuse(*_: object) -> None:
    raise NVMLError


def test_gpu_memory_is_added_up_over_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert Gpus().by_pid() == {7: 110, 8: 0}


def test_a_device_without_a_list_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlDeviceGetGraphicsRunningProcesses=refuse))
    assert Gpus().by_pid() == {7: 110, 8: 0}


@pytest.mark.parametrize("module", [None, nvml(nvmlInit=refuse), nvml(nvmlDeviceGetCount=refuse)])
def test_where_nvml_is_missing_or_fails_nothing_is_told(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    gpus = Gpus()
    assert gpus.by_pid() is None
    assert gpus.by_pid() is None
