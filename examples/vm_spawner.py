"""A spawner whose procs are virtual machines: there is no pid, and the contract of every spawner holds all the same.

Each launch boots a Linux of its own under QEMU, which can do without privileges and hardware: its file system, made on
the fly, has busybox and the program's command. The guest tells over a serial port that the program runs, and how it
ended; over the same port it hears of signals. What the program leaves behind goes with its machine.

    python examples/vm_spawner.py /boot/vmlinuz-6.1.0-amd64

Needs `qemu-system-x86_64`, a static busybox (Debian: qemu-system-x86, busybox-static), and any kernel that has serial
ports and an initramfs built in, as distributions' have.
"""

from __future__ import annotations

import asyncio
import ctypes
import gzip
import logging
import math
import shlex
import signal
import stat
import sys
import tempfile
from pathlib import Path

import ray

from ray_launcher import ActorProcLauncher, ExitReport, LaunchOptions, ProcSpawner, start_spawner

_QEMU = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "192"]
_QEMU += ["-accel", "tcg", "-serial", "null", "-serial", "stdio", "-append", "quiet panic=-1 console=ttyS0"]
#: The program is the child of a shell that waits for nothing, so it stays a zombie, whose status /proc tells in full.
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
stty -F /dev/ttyS1 raw -echo
exec < /dev/ttyS1 > /dev/ttyS1 2> /dev/null
mkfifo /never
exec 9<> /never
. /command
if ! command -v "$1" > /dev/null; then
    echo "failed cannot find $1 in the machine"
    poweroff -f
fi
(setsid "$@" < /dev/null > /dev/null 2> /stderr & echo $! > /pid; while :; do read -r _ <&9; done) &
until read -r pid < /pid; do :; done
echo running
while read -r signal; do kill -$signal -- -$pid; done < /dev/ttyS1 &
until read -r line < /proc/$pid/stat; set -- ${line##*) }; [ "$1" = Z ]; do usleep 20000; done
shift 49
echo "ended $1"
tail -n $TAIL /stderr
poweroff -f
"""


class _Machine:
    """One launch. running: set once the guest has said that the program runs."""

    def __init__(self) -> None:
        self.qemu: asyncio.subprocess.Process | None = None
        self.running = asyncio.Event()
        self.over = asyncio.Event()
        self.signals: list[signal.Signals] = []  # those that came before it ran

    def send(self, signum: signal.Signals) -> None:
        """To the program's group, in the guest."""
        if not self.running.is_set():
            self.signals.append(signum)
        elif self.qemu is not None and self.qemu.stdin is not None:
            self.qemu.stdin.write(b"%d\n" % signum)


class VmSpawner(ProcSpawner):
    """Boots a machine for each proc, on the node where the spawner is. kernel, busybox: paths there."""

    def __init__(self, kernel: str, busybox: str = "/bin/busybox") -> None:
        self._kernel, self._busybox = kernel, Path(busybox).resolve()
        self._machines: dict[str, _Machine] = {}

    async def launch(self, proc_id: str, opts: LaunchOptions) -> ExitReport:
        """See `ProcSpawner.launch`."""
        if proc_id in self._machines:
            return ExitReport(failed_reason=f"{proc_id} is already running")
        machine = self._machines[proc_id] = _Machine()
        try:
            with tempfile.NamedTemporaryFile(suffix=".cpio.gz") as disk:
                disk.write(gzip.compress(initramfs(opts, self._busybox.read_bytes()), 1))
                disk.flush()
                return await self._run(machine, disk.name, opts)
        except OSError as error:
            return ExitReport(failed_reason=f"cannot boot a machine: {error}; see the top of this example")
        finally:
            machine.over.set()
            del self._machines[proc_id]

    async def _run(self, machine: _Machine, disk: str, opts: LaunchOptions) -> ExitReport:
        qemu = machine.qemu = await asyncio.create_subprocess_exec(
            *_QEMU,
            *("-kernel", self._kernel, "-initrd", disk),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=dies_with_us,
        )
        assert qemu.stdout is not None  # noqa: S101  # both are pipes
        assert qemu.stderr is not None  # noqa: S101
        try:
            word, what = "", ""
            while word not in ("ended", "failed"):
                line = await qemu.stdout.readline()
                if not line:
                    why = (await qemu.stderr.read()).decode(errors="replace").strip()
                    return ExitReport(failed_reason=f"the machine stopped: {why or 'it said nothing'}")
                word, _, what = line.decode(errors="replace").strip().partition(" ")
                if word == "running":
                    machine.running.set()
                    for signum in machine.signals:
                        machine.send(signum)
            text = (await qemu.stdout.read()).decode(errors="replace")
        finally:
            if qemu.returncode is None:
                qemu.kill()
            await qemu.wait()
        if word == "failed":
            return ExitReport(failed_reason=what)
        tail = text.removesuffix("\n").split("\n") if text and opts.tail_lines and opts.want_stdio else []
        status = int(what)  # as wait(2) has it
        if status & 0x7F:
            return ExitReport(signal=status & 0x7F, core_dumped=bool(status & 0x80), stderr_tail=tail)
        return ExitReport(status >> 8, stderr_tail=tail)

    async def terminate(self, proc_id: str, timeout_secs: float) -> None:
        """See `ProcSpawner.terminate`."""
        machine = self._machines.get(proc_id)
        if machine is not None:
            machine.send(signal.SIGTERM)
            try:
                await asyncio.wait_for(machine.over.wait(), None if math.isinf(timeout_secs) else timeout_secs)
            except asyncio.TimeoutError:
                machine.send(signal.SIGKILL)

    async def kill(self, proc_id: str) -> None:
        """See `ProcSpawner.kill`."""
        machine = self._machines.get(proc_id)
        if machine is not None:
            machine.send(signal.SIGKILL)

    async def until_running(self, proc_id: str) -> None:
        """Return when the program has been started: booting takes a while."""
        while proc_id not in self._machines:  # noqa: ASYNC110  # its launch is under way
            await asyncio.sleep(0.01)
        await self._machines[proc_id].running.wait()


def dies_with_us() -> None:
    """In the child: SIGKILL when the thread that started it, the actor's own, has gone."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def initramfs(opts: LaunchOptions, busybox: bytes) -> bytes:
    """The machine's file system, an archive as `cpio --format=newc` makes it."""
    env = {"PATH": "/bin", "HOME": "/", **opts.env}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    lines += [f"TAIL={opts.tail_lines}", f"cd {shlex.quote(opts.cwd or '/')}"]
    lines += [f"set -- {shlex.join([opts.program, *opts.args])}", ""]
    folders = dict.fromkeys(("bin", "proc", "dev", "tmp"), b"")
    files = {"init": _INIT.encode(), "command": "\n".join(lines).encode(), "bin/busybox": busybox}
    members = [_member(name, stat.S_IFDIR | 0o755, b"", number) for number, name in enumerate(folders)]
    members += [
        _member(name, stat.S_IFREG | 0o755, data, 100 + number) for number, (name, data) in enumerate(files.items())
    ]
    return b"".join([*members, _member("TRAILER!!!", 0, b"", 0)])


def _member(name: str, mode: int, data: bytes, inode: int) -> bytes:
    numbers = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


if __name__ == "__main__":
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    launcher = ActorProcLauncher(start_spawner(VmSpawner, sys.argv[1]))
    script = "uname -m >&2; exit 3"
    print("guest", launcher.launch("guest", LaunchOptions(program="sh", args=["-c", script])).exit_port.wait())
