"""A supervisor that finds no room to start in says so in words, and leaves nothing; where there is room, it starts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from limits import Cgroup, cgroup
from node_rig import Rig, until
from small_disk import small_disk

from ray_launcher.node import client


def _start(directory: Path) -> None:
    client.make_directory(directory)
    client.start(directory, 0, 60.0, 0.0)


@pytest.mark.parametrize("inodes", range(4))
def test_a_supervisor_that_finds_no_inode_says_so_and_leaves_nothing(tmp_path: Path, inodes: int) -> None:
    """It takes four: two directories, a file for its last words, and a socket."""
    with small_disk(tmp_path / "disk") as disk:
        run = disk.path / "run"
        with disk.without_inodes(inodes):
            with pytest.raises(client.SupervisorError) as raised:
                _start(run / "one")
            assert os.strerror(errno.ENOSPC) in str(raised.value)
            assert f"free space or inodes on the disk of the directory {disk.path}" in str(raised.value)
            assert "Traceback" not in str(raised.value)
        assert not (run / "one").exists()
        rig = Rig(tmp_path, directory=run / "one")
        rig.start()
        rig.connect()
        rig.stop()


def test_a_supervisor_starts_and_serves_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        rig = Rig(tmp_path, directory=disk.path / "run" / "one")
        with disk.full():
            rig.start()
            rig.connect()
            assert rig.exit(rig.sh("exit 3")).value == 3
            rig.stop()


#: Starts a supervisor from a process of its own, which is held back until it is told to go on.
_STARTER = f"""
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("main", {str(Path(client.__file__).with_name("main.py"))!r})
main = importlib.util.module_from_spec(spec)
spec.loader.exec_module(main)
main._stand_in_packages()  # Ray's import would start threads
from ray_launcher.node import client
input()
try:
    client.start(Path(sys.argv[1]), 0, 60.0, 0.0)
except client.SupervisorError as error:
    print(error)
"""


def _start_in(group: Cgroup, directory: Path) -> str:
    command = [sys.executable, "-c", _STARTER, str(directory)]
    starter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    group.add(starter.pid)
    said, _ = starter.communicate("\n", timeout=60)
    assert starter.returncode == 0
    return said


def test_a_supervisor_that_cannot_be_forked_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    """It takes four: who starts it, what becomes a zombie, the guard, and itself."""
    rig = Rig(tmp_path)
    with cgroup("pids") as group:
        for processes in (1, 2, 3):
            until(lambda: not group.tasks(), "the last processes have been reaped")
            client.make_directory(rig.directory)
            group.limit_tasks(processes)
            said = _start_in(group, rig.directory)
            assert os.strerror(errno.EAGAIN) in said
            assert "limit of processes is reached" in said
            assert "Traceback" not in said
            assert not rig.directory.exists()
        until(lambda: not group.tasks(), "the last processes have been reaped")
        client.make_directory(rig.directory)
        group.limit_tasks(4)
        assert _start_in(group, rig.directory) == ""
        rig.connect()
        rig.stop()
