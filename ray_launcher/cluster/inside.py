"""What a launch that goes into a living proc gets of it: read where both are, from the kernel."""

from __future__ import annotations

import os
from pathlib import Path

from ray_launcher.cluster.environment import Environ
from ray_launcher.cluster.wire import Inside
from ray_launcher.node.proctable import COOKIE


class InsideError(Exception):
    """It has ended, or cannot be looked at; the text says which."""


def surroundings(inside: Inside) -> tuple[Environ, str]:
    """The environment that its leader was started with, without the cookie, and the directory in which that is now.

    Raises `InsideError`.
    """
    process, shown = Path(f"/proc/{inside.pid}"), f"proc {inside.proc_id!r}"
    try:
        items = (process / "environ").read_bytes().split(b"\0")
        cwd = os.readlink(process / "cwd")  # noqa: PTH115  # as it is, and no more
    except PermissionError:
        raise InsideError(f"{shown} runs as another user, or with privileges: nothing can join it") from None
    except OSError:
        raise InsideError(f"{shown} has ended: nothing can join it") from None
    environ = dict(item.split(b"=", 1) for item in items if b"=" in item)
    cookie = environ.pop(COOKIE.rstrip(b"="), b"")
    if cookie.rsplit(b"/", 1)[-1] != inside.token.encode():
        why = "has ended" if cookie else "has ended, or has overwritten its environment, as for a title in ps"
        raise InsideError(f"{shown} {why}: nothing can join it")
    return environ, cwd
