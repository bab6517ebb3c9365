"""On a node: removes containers whose shim was killed, and could not see to that.

What is killed is always the container itself, see `shim.c`. But an engine without a daemon has nobody left then who
would take its records and layers away.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

#: Seconds that an engine gets to list containers, or to remove them.
_PATIENCE = 60.0
#: How often: somebody else may be removing the same ones.
_ATTEMPTS = 3
#: What `shim.c` writes into `engine.SHIM_LABEL`: boot, pid namespace, pid and start time of the shim.
_SHIM = re.compile(r"([0-9a-f-]+)/(pid:\[\d+\])/(\d+)/(\d+)")


def reap(listing: list[str], removal: list[str], lost_only: bool) -> bool:
    """Remove what `listing` prints, as lines of a container's id and its shim; False: something is left, or may be.

    lost_only: spare those whose shim is there, or may be.
    """
    try:
        for _ in range(_ATTEMPTS):
            found = [line.partition(" ") for line in _run(listing).splitlines()]
            doomed = [name for name, _, shim in found if not lost_only or is_lost(shim)]
            if not doomed:
                return True
            _run([*removal, *doomed], check=False)
    except FileNotFoundError:
        return True  # there is no engine here
    except (OSError, subprocess.SubprocessError):
        pass
    return False


def is_lost(shim: str) -> bool:
    """Whether the process of this label is gone for sure. One of another pid namespace cannot be seen from here."""
    match = _SHIM.fullmatch(shim)
    if match is None:
        return False
    boot, space, pid, start = match.groups()
    if boot != Path("/proc/sys/kernel/random/boot_id").read_text().strip():
        return True
    return space == str(Path("/proc/self/ns/pid").readlink()) and start != _start_of(pid)


def _start_of(pid: str) -> str:
    """When this process was started, in ticks since the boot; "" where none lives."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _run(command: list[str], *, check: bool = True) -> str:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=check
    ).stdout
