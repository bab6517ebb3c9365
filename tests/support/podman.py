"""A podman of this test run's own: its store is in the run's temporary directory, its image a static busybox."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

#: Debian's podman runs containers with these in places without overlay file systems, networks and high limits.
RUN_OPTIONS = "--network=none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024"
IMAGE = "localhost/busybox"
_BUSYBOX = Path("/bin/busybox")
_PASSWD = b"root:x:0:0::/:/bin/sh\napp:x:1000:1000::/tmp:/bin/sh\n"


def missing() -> str:
    """Why there can be no containers here; "" if there can."""
    for tool, package in {"podman": "podman", "runc": "runc"}.items():
        if shutil.which(tool) is None:
            return f"{tool} is not there: apt-get install {package}"
    if os.geteuid() != 0:
        return "only root runs containers without more preparations"
    if not _BUSYBOX.exists() or subprocess.run(["ldd", _BUSYBOX], capture_output=True, check=False).returncode == 0:
        return "there is no static busybox: apt-get install busybox-static"
    return ""


def options() -> str:
    """Podman's, for a store of our own; see `leaks`."""
    store = Path(tempfile.gettempdir()) / "podman"
    return f"--root {store}/root --runroot {store}/run --storage-driver vfs --runtime runc"


def podman(*words: str, stdin: bytes | None = None) -> str:
    """What a command prints."""
    command = ["podman", *options().split(), *words]
    return subprocess.run(command, input=stdin, capture_output=True, check=True, timeout=60).stdout.decode()


def make_image(name: str = IMAGE) -> None:
    """Import it: busybox under all its names, and a second user."""
    podman("import", "--change", "ENV FROM_IMAGE=yes", "--change", "WORKDIR /tmp", "-", name, stdin=_tar())


def _tar() -> bytes:
    applets = subprocess.run([_BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for directory in ("bin", "etc", "tmp", "dev", "proc", "sys", "run"):
            found = tarfile.TarInfo(directory)
            found.type, found.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(found)
        tar.add(_BUSYBOX, "bin/busybox")
        for applet in set(applets) - {"busybox"}:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        passwd = tarfile.TarInfo("etc/passwd")
        passwd.size = len(_PASSWD)
        tar.addfile(passwd, io.BytesIO(_PASSWD))
    return written.getvalue()
