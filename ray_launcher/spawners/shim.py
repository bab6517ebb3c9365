"""On a node, the leader of a container's proc: runs the engine's command, and tells how the program in it ended.

Started by its supervisor as a plain program, so standard library only, and little of it: each import costs every
launch. It holds the one end of a FIFO of which `init.c`, PID 1 of the container, holds the other: what this process
reads from its stdin goes there, and when it is killed, so is everything in the container, whatever the engine does.
`run` says how it tells the end.
"""

from __future__ import annotations

# Without enum, which would cost every container 4 ms.
import _signal as signal  # type: ignore[import-not-found]
import marshal
import os
import select
import time

#: The exit code that says: see what is written beside the log of stdout. All others are the program's own.
SPECIAL = 125
#: Where the container has what is in the box; `init.c` has it, too.
BOX = "/.ray_launcher"
#: Characters of an engine's last words.
_LAST_WORDS = 2000
#: Seconds that an engine gets to remove a container.
_REMOVAL = 60.0
_TAKEN = ("RAY_LAUNCHER_SECRETS", "RAY_LAUNCHER_SOCKET")
#: Of the GPUs that the proc has got.
_GPUS = "CUDA_VISIBLE_DEVICES"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Plan: TypeAlias = dict[str, list[str]]  # see `Engine.plan`
    End: TypeAlias = tuple[str, int, bool, str]  # exited, signaled, failed or no-image; code or signal; core; reason


class Box:
    """The directory that the container gets, made of what is in the directory of the proc's secrets."""

    def __init__(self, secrets: str) -> None:
        self.path = os.path.join(secrets, "box")
        self._status = os.path.join(self.path, "status")
        os.umask(0)  # the container's user may be anybody; the directory above is its owner's alone
        os.mkdir(self.path, 0o755)
        here = os.path.dirname(__file__)
        self._copy(os.path.join(here, f"init-{os.uname().machine}"), "init", 0o755)
        self._copy(os.path.join(secrets, "spec"), "spec", 0o644, _own_variables())
        self._write("status", b"", 0o666)
        os.mkfifo(os.path.join(self.path, "life"), 0o666)
        self.life = os.open(os.path.join(self.path, "life"), os.O_RDWR | os.O_NONBLOCK)

    def end(self) -> End | None:
        """How the program ended, if it is known."""
        with open(self._status, encoding="ascii") as file:
            lines = file.read().splitlines()
        what, about, one, two = lines[-1].split() if lines else ("", "", "0", "0")
        if what == "exited":
            return what, int(one), False, ""
        if what == "signaled":
            return what, int(one), two == "1", ""
        if what == "failed":
            return what, 0, False, f"{about}: {os.strerror(int(one))}"
        if what == "never":
            return "failed", 0, False, "never"
        return None

    @property
    def has_begun(self) -> bool:
        """Whether the program was started."""
        return os.path.getsize(self._status) > 0

    def _copy(self, source: str, name: str, mode: int, more: bytes = b"") -> None:
        with open(source, "rb") as file:
            self._write(name, file.read() + more, mode)

    def _write(self, name: str, content: bytes, mode: int) -> None:
        fd = os.open(os.path.join(self.path, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(fd, "wb") as file:
            file.write(content)


def run(plan: Plan, secrets: str) -> End:
    """Run a container to its end, which is told by our own exit code, or beside our log if that cannot say it."""
    wakeup, wakeup_in = os.pipe()
    os.set_blocking(wakeup_in, False)
    signal.set_wakeup_fd(wakeup_in, warn_on_full_buffer=False)
    for signum in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(signum, lambda _signum, _frame: None)
    try:
        box = Box(secrets)
    except FileNotFoundError:
        return _failed(f"there is no init for containers on {os.uname().machine}; use x86_64 or aarch64 nodes")
    mount = f"type=bind,source={box.path},target={BOX}"
    command = [*plan["run"], "--mount", mount, *_gpus(plan), *plan["image"]]
    quiet = bool(plan["quiet"])
    begin = os.lseek(2, 0, os.SEEK_END) if not quiet and os.path.isfile("/dev/fd/2") else 0
    try:
        client = _spawn(command, quiet)
    except OSError as error:
        return _failed(f"cannot run {command[0]!r}: {error.strerror}; install it on this node, or name another engine")
    code = _see_through(client, wakeup, box)
    end = box.end()
    if end is not None:
        return end
    os.write(box.life, bytes([signal.SIGKILL]))  # the client has gone without its container
    if code == SPECIAL and not box.has_begun and _call(plan["look"]) != 0:
        return "no-image", 0, False, ""
    _call(plan["remove"])
    end = box.end()
    if end is not None or box.has_begun:
        return end or ("signaled", int(signal.SIGKILL), False, "")
    return _failed(f"{command[0]} could not start the container (code {code}): {_last_words(begin, quiet)}")


def reap(command: list[str], removal: list[str]) -> int:
    """Remove all containers that `command` lists; returns how many, or -1 where the engine cannot be asked."""
    out, out_in = os.pipe()
    try:
        pid = _spawn(command, True, out_in)
    except OSError:
        return 0  # there is no engine here
    finally:
        os.close(out_in)
    with open(out, encoding="ascii", errors="replace") as file:
        listed = file.read().split()
    if os.waitpid(pid, 0)[1]:
        return -1
    return len(listed) if not listed or _call([*removal, *listed]) == 0 else -1


def _see_through(client: int, wakeup: int, box: Box) -> int:
    """Pass on what is asked for until the engine's client has exited; returns its code, as a shell would."""
    waiting = select.poll()
    waiting.register(wakeup, select.POLLIN)
    waiting.register(0, select.POLLIN)
    while True:
        ended, status = os.waitpid(client, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        for fd, _ in waiting.poll():
            asked = os.read(fd, 64)
            if fd == wakeup:  # who tells the whole tree to end tells us, too
                asked = bytes([signal.SIGTERM]) if signal.SIGTERM in asked else b""
            elif not asked:
                waiting.unregister(0)
            if asked:
                os.write(box.life, asked)


def _spawn(command: list[str], quiet: bool, stdout: int = -1) -> int:
    null = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, null, 0)]
    if quiet:
        actions += [(os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
    if stdout >= 0:
        actions += [(os.POSIX_SPAWN_DUP2, stdout, 1)]
    before = os.umask(0o022)
    try:
        return os.posix_spawnp(
            command[0], command, _environment(), file_actions=actions, setsigdef=[signal.SIGCHLD, signal.SIGTERM]
        )
    finally:
        os.umask(before)
        os.close(null)


def _call(command: list[str]) -> int:
    """Its wait status; it is killed when it takes too long."""
    pid, until = _spawn(command, True), time.monotonic() + _REMOVAL
    fd = os.pidfd_open(pid)
    if not select.select([fd], [], [], until - time.monotonic())[0]:
        os.kill(pid, signal.SIGKILL)
    os.close(fd)
    return os.waitpid(pid, 0)[1]


def _environment() -> dict[str, str]:
    """The engine's: the node's own, and none of what is meant for the program."""
    return {name: value for name, value in os.environ.items() if name not in _TAKEN}


def _own_variables() -> bytes:
    """What this package tells every proc, for `spec`."""
    told = [item for item in os.environb.items() if item[0].startswith(b"RAY_LAUNCHER_")]
    return b"".join(b"%b=%b\0" % item for item in told if os.fsdecode(item[0]) not in _TAKEN)


def _gpus(plan: Plan) -> list[str]:
    ids = os.environ.get(_GPUS, "")
    if not plan["gpus"] or not ids:
        return []
    if plan["gpus"] == ["cdi"]:
        return [word for each in ids.split(",") for word in ("--device", f"nvidia.com/gpu={each}")]
    return ["--gpus", f'"device={ids}"']


def _failed(reason: str) -> End:
    return "failed", 0, False, reason


def _last_words(begin: int, quiet: bool) -> str:
    if quiet:
        return "its words were discarded, as want_stdio=False asks for"
    with open("/dev/fd/2", "rb") as file:
        file.seek(begin)
        said = file.read()[-_LAST_WORDS:].decode(errors="replace").strip()
    return said or "it did not say why"


def _tell(end: End) -> int:
    """Our exit code; what that cannot say is put where `RayProcLauncher.value` finds it."""
    what, number, _, _ = end
    if what == "exited" and number != SPECIAL:
        return number
    import pickle  # noqa: PLC0415  # seldom needed

    log = os.path.realpath("/proc/self/fd/1").removesuffix(".out")
    with open(f"{log}.value.part", "wb") as file:
        file.write(b"v" + pickle.dumps(end))  # a value, as the answer of a callable has it
    os.rename(f"{log}.value.part", f"{log}.value")
    return SPECIAL


def main() -> int:
    """Carry out the plan among our secrets."""
    secrets = os.environ["RAY_LAUNCHER_SECRETS"]
    with open(os.path.join(secrets, "plan"), "rb") as file:
        plan = marshal.load(file)  # noqa: S302  # from our own spawner
    try:
        end = run(plan, secrets)
    except Exception as error:  # noqa: BLE001  # whatever it is, somebody waits for an end
        end = _failed(f"the container's shim failed: {type(error).__name__}: {error}")
    return _tell(end)


def leave() -> None:
    """`main`, and no tidying up: each millisecond counts for every launch."""
    os._exit(main())
