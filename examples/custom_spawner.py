"""A spawner of one's own: procs as child processes of the spawner's worker, each in a process group of its own.

Three coroutines are all there is to write. The order of messages, exactly one result per proc, odd reports and
exceptions are taken care of by the base class and the launcher. `ray_launcher.testing.SpawnerContract` tests it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import tempfile
from typing import IO

import ray

from ray_launcher import ActorProcLauncher, ExitReport, LaunchOptions, ProcSpawner, start_spawner


class LocalSpawner(ProcSpawner):
    """Runs procs on the node where the spawner is."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[subprocess.Popen[bytes], asyncio.Event]] = {}

    async def launch(self, proc_id: str, opts: LaunchOptions) -> ExitReport:
        """Start the proc, wait for its end, report it. Being cancelled kills it."""
        if proc_id in self._running:
            return ExitReport(failed_reason=f"{proc_id} is already running")
        with tempfile.TemporaryFile() as stderr:
            try:
                proc = start(opts, stderr)
            except OSError as error:
                return ExitReport(failed_reason=f"cannot start {opts.program}: {error.strerror}")
            exited = asyncio.Event()
            self._running[proc_id] = (proc, exited)
            try:
                await exit_of(proc)
            finally:
                exited.set()
                os.killpg(proc.pid, signal.SIGKILL)  # whatever it leaves; until `wait` its pid is nobody else's
                code = proc.wait()
                del self._running[proc_id]
            stderr.seek(0)
            tail = stderr.read().decode(errors="replace").removesuffix("\n").split("\n")
        tail = tail[-opts.tail_lines :] if opts.tail_lines and tail != [""] else []
        return ExitReport(code, stderr_tail=tail) if code >= 0 else ExitReport(signal=-code, stderr_tail=tail)

    async def terminate(self, proc_id: str, timeout_secs: float) -> None:
        """SIGTERM, then SIGKILL unless the proc's own end comes first."""
        if proc_id in self._running:
            proc, exited = self._running[proc_id]
            os.killpg(proc.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(exited.wait(), timeout_secs)
            except asyncio.TimeoutError:
                os.killpg(proc.pid, signal.SIGKILL)

    async def kill(self, proc_id: str) -> None:
        """SIGKILL."""
        if proc_id in self._running:
            proc, _ = self._running[proc_id]
            os.killpg(proc.pid, signal.SIGKILL)


def start(opts: LaunchOptions, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the program in a session, and so in a process group, of its own. Raises OSError."""
    return subprocess.Popen(
        [opts.program, *opts.args],
        env={**os.environ, **opts.env},
        cwd=opts.cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr if opts.want_stdio else subprocess.DEVNULL,
        start_new_session=True,
    )


async def exit_of(proc: subprocess.Popen[bytes]) -> None:
    """Wait for its end without a thread, and without reaping it."""
    exited = asyncio.Event()
    pidfd = os.pidfd_open(proc.pid)
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, exited.set)
    try:
        await exited.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


if __name__ == "__main__":
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    launcher = ActorProcLauncher(start_spawner(LocalSpawner))
    launched = launcher.launch("demo", LaunchOptions(program="sh", args=["-c", "echo no disk >&2; exit 3"]))
    result = launched.exit_port.wait()
    print(f"demo {result}, with the last words {result.stderr_tail}")
