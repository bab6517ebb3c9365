"""A Ray cluster in a process of its own whose GCS can be killed and started again, with Redis behind it or not."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node_rig import running, until
from ray_rig import DEADLINE, Driver

#: Of a Redis that is there for one test, on the loopback interface.
_PASSWORD = "of-a-test"

_CLUSTER = """
import sys
from ray.cluster_utils import Cluster

quiet = dict(include_dashboard=False, num_gpus=0, object_store_memory=100 << 20)
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, redis_password=sys.argv[1], **quiet))
cluster.add_node(num_cpus=2, **quiet)
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "kill\\n":
        cluster.head_node.kill_gcs_server()  # with SIGKILL
    else:
        cluster.head_node.start_gcs_server()
    print("done", flush=True)
cluster.shutdown()
"""

#: Evaluates what it is told.
_SESSION = """
import json, sys
import ray
from ray_launcher import LaunchOptions, RayProcLauncher

def launch(proc_id, script):
    ports[proc_id] = launcher.launch(proc_id, LaunchOptions(program="sh", args=["-c", script])).exit_port

def first_line(proc_id):
    return next(launcher.logs(proc_id, follow=True))

def result(proc_id):
    result = ports[proc_id].wait(60)
    return result.returncode, result.stderr_tail

def pids():
    spawner = ray.get(launcher._spawner.facts.remote())["pid"]
    agents = ray.get(launcher._spawner.agents.remote()).values()
    return [spawner, *(agent["pid"] for agent in agents)]

ray.init(sys.argv[1], log_to_driver=False, logging_level="error")
ports = {}
launcher = RayProcLauncher(grace=1)
print(json.dumps(launcher.session), flush=True)
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
launcher.close(0)
"""


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """A Redis server that keeps everything in memory; its address. Skips the test where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs redis-server (apt-get install redis-server)")
    with tempfile.TemporaryDirectory() as directory:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = ["--bind", "127.0.0.1", "--port", str(port), "--requirepass", _PASSWORD, "--save", ""]
        command = [program, *options, "--appendonly", "no", "--dir", directory]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            until(lambda: server.poll() is not None or _answers(port), "Redis answers")
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection, connection.makefile("rb") as answers:
            connection.sendall(f"AUTH {_PASSWORD}\r\nPING\r\n".encode())
            return [answers.readline(), answers.readline()] == [b"+OK\r\n", b"+PONG\r\n"]
    except OSError:
        return False


class GcsCluster:
    """A head without CPUs and one node, and a driver with a session.

    directory: for the temporary files of all of it.  reconnect: seconds that Ray's processes wait for a GCS.
    """

    def __init__(self, directory: Path, environ: dict[str, str], reconnect: int) -> None:
        self.directory = directory
        own = {"TMPDIR": str(directory), "RAY_gcs_rpc_server_reconnect_timeout_s": str(reconnect)}
        self._environ = {**os.environ, **own, **environ}
        self._cluster = Driver(_CLUSTER, _PASSWORD, environ=self._environ)
        self._driver: Driver | None = None

    def connect(self) -> str:
        """Start the driver; returns the name of its session."""
        self._driver = Driver(_SESSION, self._cluster.read(), environ=self._environ)
        return str(json.loads(self._driver.read()))

    def ask(self, expression: str) -> Any:
        """What the driver says to it."""
        assert self._driver is not None
        self._driver.tell(expression)
        return json.loads(self._driver.read())

    def kill_gcs(self) -> None:
        self._cluster.tell("kill")
        assert self._cluster.read() == "done"

    def start_gcs(self) -> None:
        self._cluster.tell("start")
        assert self._cluster.read() == "done"

    def processes(self, word: str = "") -> list[str]:
        """Command lines of all that has the directory in it, and this word."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.directory) in line and word in line and running(int(process.name)):
                    found.append(line)
        return found

    def close(self) -> None:
        """End what is left."""
        for process in filter(None, (self._driver, self._cluster)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.process.communicate(timeout=DEADLINE)  # the end of its input is its sign
            process.close()


@contextlib.contextmanager
def gcs_cluster(environ: dict[str, str], reconnect: int) -> Iterator[GcsCluster]:
    """One for a test."""
    with tempfile.TemporaryDirectory(prefix="g", ignore_cleanup_errors=True) as directory:
        cluster = GcsCluster(Path(directory), environ, reconnect)
        try:
            yield cluster
        finally:
            cluster.close()
