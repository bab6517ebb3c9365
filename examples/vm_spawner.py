"""A spawner whose procs run in virtual machines: one guest for each, booted for it and gone with it.

There is no pid here: a kernel, an initramfs with busybox and the launch, and a serial port through which the guest
tells the wait status. qemu itself is a proc of the default launcher: it is ended with its spawner, whatever dies.

Nodes need the packages qemu-system-x86 and busybox-static, and a kernel such as linux-image-cloud-amd64's. Debian has
the virtio drivers as modules; serial ports are built in. Run it: python vm_spawner.py [KERNEL]
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import re
import shlex
import shutil
import signal
import stat
import sys
from pathlib import Path

import cloudpickle
import ray

from ray_launcher import (
    ActorProcLauncher,
    ExitReport,
    LaunchOptions,
    ProcExitResult,
    ProcSpawner,
    RayProcLauncher,
    ReadyWhen,
    start_spawner,
)

#: Pid 1 of the guest. The program gets a session of its own; whoever is in another than the kernel's own (0) belongs to
#: it. Its wait status is told by `time`, since a shell cannot tell code 137 from SIGKILL.
INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
port=/dev/ttyS1
stty -F $port raw -echo
echo '/core.%p' >/proc/sys/kernel/core_pattern
exec 3<>$port

signal_program() { # with $1
    for stat in /proc/[0-9]*/stat; do
        read -r line 2>/dev/null <$stat || continue
        pid=${line%% *}
        set -- $1 ${line##*) }
        [ $5 = 0 ] || kill -$1 $pid
    done
}

while read -r word signum; do [ "$word" = signal ] && signal_program $signum; done <&3 &

{
    time -f %x -o /status setsid sh /launch </dev/null
    signal_program 9 # what it has left behind would keep `tail` waiting
} 2>&1 >/dev/console | tail -n $(cat /tail_lines) | tail -c 1000000 >/stderr

[ -e /core.$(cat /pid) ] && core=core
if [ -e /unstarted ]; then echo unstarted; else echo "status $(head -n 1 /status) $core"; fi >&3
cat /stderr >&3
stty -F $port sane # returns when all has been sent
poweroff -f
"""
#: Seconds for a guest to end its program when that is to be killed; then the machine is.
PATIENCE = 5.0
#: Seconds between two looks at whether a guest has come up.
LOOK = 0.2


@dataclasses.dataclass
class Guest:
    """What all of a spawner have in common, see there."""

    kernel: str | None
    accel: str
    memory: int
    files: dict[str, str]


@dataclasses.dataclass
class Machine:
    """One that runs. name: of qemu as a proc, each its own: what is meant for one never reaches another."""

    name: str
    over: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    killed: bool = False
    """By us."""


class VmSpawner(ProcSpawner):
    """Runs procs in virtual machines on the nodes of the cluster, where their `placement` says.

    kernel: a file on each node; None: the newest in /boot there.  accel: qemu's, software emulation or "kvm".  memory:
    of a guest, in MiB.  files: what a guest has beside busybox, as {path there: path on the node}; all is executable.

    Of `LaunchOptions` it heeds program, args, env, cwd, want_stdio, tail_lines and placement: the others are about the
    processes of a node. The environment is the guest's, with env added. stdout is the guest's console. TERM
    waits for the guest to come up.
    """

    def __init__(
        self, kernel: str | None = None, accel: str = "tcg", memory: int = 128, files: dict[str, str] | None = None
    ) -> None:
        self._guest = Guest(kernel, accel, memory, files or {})
        self._machines = RayProcLauncher()
        self._running: dict[str, Machine] = {}
        self._numbers = itertools.count(1)
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes need not have this module to `boot`

    async def launch(self, proc_id: str, opts: LaunchOptions) -> ExitReport:
        """Boot a guest, wait for its end, and report what it has told. Being cancelled ends it."""
        if proc_id in self._running:
            return ExitReport(failed_reason=f"{proc_id} is already running")
        machine = self._running[proc_id] = Machine(f"guest-{next(self._numbers)}")
        try:
            port = self._machines.launch(machine.name, self._qemu(opts)).exit_port
            try:
                result = await port
            except asyncio.CancelledError:
                self._machines.kill(machine.name)
                await port
                raise
            told = await asyncio.to_thread(lambda: list(self._machines.logs(machine.name)))
        finally:
            machine.over.set()
            del self._running[proc_id]
        return report_of(opts, told, result, machine)

    async def terminate(self, proc_id: str, timeout_secs: float) -> None:
        """SIGTERM in the guest, then SIGKILL unless its end comes first."""
        if machine := self._running.get(proc_id):
            try:
                await asyncio.wait_for(self._end(machine), timeout_secs)
            except asyncio.TimeoutError:
                await self._kill(machine)

    async def kill(self, proc_id: str) -> None:
        """SIGKILL in the guest; one that is not up, or does not answer, is killed itself."""
        if machine := self._running.get(proc_id):
            await self._kill(machine)

    def _qemu(self, opts: LaunchOptions) -> LaunchOptions:
        qemu = LaunchOptions.from_callable(boot, launch_script(opts), max(1, opts.tail_lines), self._guest)
        ready_when = ReadyWhen(log="^started$")
        return dataclasses.replace(qemu, want_stdin=True, ready_when=ready_when, placement=opts.placement)

    async def _end(self, machine: Machine) -> None:
        while not (machine.over.is_set() or await self._is_up(machine)):  # noqa: ASYNC110  # no event of ours
            await asyncio.sleep(LOOK)
        await self._signal(machine, signal.SIGTERM)
        await machine.over.wait()

    async def _kill(self, machine: Machine) -> None:
        if await self._is_up(machine):
            await self._signal(machine, signal.SIGKILL)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(machine.over.wait(), PATIENCE)
        machine.killed = True
        self._machines.kill(machine.name)

    async def _is_up(self, machine: Machine) -> bool:
        infos = await asyncio.to_thread(self._machines.procs)
        return any(info.ready for info in infos if info.proc_id == machine.name)

    async def _signal(self, machine: Machine, signum: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended
            await asyncio.to_thread(self._machines.stdin(machine.name).write, b"signal %d\n" % signum)


def report_of(opts: LaunchOptions, told: list[str], result: ProcExitResult, machine: Machine) -> ExitReport:
    """What a guest has told, or why it has not."""
    how, *stderr = [*told[told[:1] == ["started"] :], ""]
    if how == "unstarted":
        return ExitReport(failed_reason=f"the guest cannot start {opts.program}: {' '.join(stderr).strip()}")
    tail = stderr[:-1][-opts.tail_lines :] if opts.tail_lines and opts.want_stdio else []
    if status := re.fullmatch(r"status (.*signal )?(?:.* )?(\d+) (core)?", how):
        number = int(status[2])
        if status[1]:
            return ExitReport(signal=number, core_dumped=status[3] is not None, stderr_tail=tail)
        return ExitReport(number, stderr_tail=tail)
    if machine.killed:
        return ExitReport(signal=signal.SIGKILL)
    console = " | ".join(line.strip() for line in (result.stderr_tail or [])[-5:])
    return ExitReport(
        failed_reason=f"nobody knows how {opts.program} ended: its machine {result}; last seen: {console}"
    )


def launch_script(opts: LaunchOptions) -> bytes:
    """What becomes the program. The trap is for what keeps it from that; with the program it is gone."""
    lines = [
        "trap 'echo >/unstarted' EXIT",
        "echo $$ >/pid",
        f"cd -- {shlex.quote(opts.cwd or '/')} || exit",
        *(f"export {shlex.quote(f'{name}={value}')}" for name, value in opts.env.items()),
        *([] if opts.want_stdio else ["exec >/dev/null"]),
        "echo started >&3",
        f"exec {shlex.join([opts.program, *opts.args])} 3>&-",
    ]
    return os.fsencode("".join(f"{line}\n" for line in lines))


def boot(launch: bytes, tail_lines: int, guest: Guest) -> None:
    """Become qemu, on the node. Nothing is written there: the initramfs is in memory."""
    kernel = guest.kernel or max(Path("/boot").glob("vmlinuz-*"), key=os.path.getmtime, default=None)
    busybox, qemu = shutil.which("busybox"), shutil.which("qemu-system-x86_64")
    if qemu is None or busybox is None or kernel is None:
        sys.exit("this node needs the packages qemu-system-x86 and busybox-static, and a kernel in /boot or by name")
    content = {name: Path(path).read_bytes() for name, path in {"bin/busybox": busybox, **guest.files}.items()}
    if b"/ld-linux" in content["bin/busybox"]:
        sys.exit(f"{busybox} is not static: this node needs the package busybox-static")
    own = {"init": INIT.encode(), "launch": launch, "tail_lines": b"%d\n" % tail_lines}
    initrd = os.memfd_create("initrd", 0)
    with open(initrd, "wb", closefd=False) as file:
        file.write(archive({**content, **own}))
    command = [
        *(qemu, "-machine", f"q35,accel={guest.accel}", "-cpu", "max", "-m", str(guest.memory)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(kernel), "-initrd", f"/proc/self/fd/{initrd}"),
        *("-append", "console=ttyS0 quiet panic=-1"),
        *("-chardev", "file,id=console,path=/dev/stderr,append=on", "-serial", "chardev:console"),
        *("-chardev", "stdio,id=port,signal=off", "-serial", "chardev:port"),
    ]
    os.execv(qemu, command)  # noqa: S606  # that is what it is for


def archive(files: dict[str, bytes]) -> bytes:
    """A cpio archive as the kernel unpacks it, with what mounts and the console need.

    Source: Documentation/driver-api/early-userspace/buffer-format.rst of Linux.
    """
    names = [name.strip("/") for name in files]
    parents = {"/".join(parts[:end]) for name in names for parts in [name.split("/")] for end in range(1, len(parts))}
    directories = sorted(parents | {"bin", "dev", "etc", "proc", "root", "sys", "tmp"})
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in directories]
    entries.append(("dev/console", stat.S_IFCHR | 0o600, b""))
    entries += [(name, stat.S_IFREG | 0o755, data) for name, data in zip(names, files.values(), strict=True)]
    entries.append(("TRAILER!!!", 0, b""))
    return b"".join(entry(number, *each) for number, each in enumerate(entries, 1))


def entry(number: int, name: str, mode: int, data: bytes) -> bytes:
    """One file of such an archive. The only device is the console, 5:1."""
    path = os.fsencode(name) + b"\0"
    device = (5, 1) if stat.S_ISCHR(mode) else (0, 0)
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return padded(head) + padded(data)


def padded(part: bytes) -> bytes:
    """To a multiple of four bytes."""
    return part + b"\0" * (-len(part) % 4)


if __name__ == "__main__":
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    launcher = ActorProcLauncher(start_spawner(VmSpawner, *sys.argv[1:]))
    launched = launcher.launch("demo", LaunchOptions(program="sh", args=["-c", "uname -sm >&2; exit 3"]))
    result = launched.exit_port.wait()
    print(f"demo {result}, with the last words {result.stderr_tail}")
