"""A Ray cluster on several hosts, see `hosts`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import uuid

from hosts import DEADLINE, Host, Hosts
from node_rig import until

#: What would lead to another cluster, or open this one in another way.
_FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_TMPDIR")
_RAY = (sys.executable, "-m", "ray.scripts.scripts")
_START = ("--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats")
_PORT = 6379
#: How the command lines of ours begin; behind that Ray shows the method that runs.
_ACTORS = ("ray::Agent", "ray::ClusterSpawner")


class RayHosts(Hosts):
    """The first host has the cluster's head, without CPUs; the others are its nodes."""

    def __init__(self, head: str, *others: str) -> None:
        super().__init__(head, *others)
        try:
            self.head = self[head]
            self._token = self.directory / "token"
            self._token.write_text(uuid.uuid4().hex * 2)
            options = ["--head", f"--port={_PORT}", "--num-cpus=0", "--include-dashboard=false"]
            self.run(self.head, *_ray_start(self.head, *options))
            self.join(*(self[name] for name in others))
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """For `ray.init`."""
        return f"{self.head.address}:{_PORT}"

    def environ(self, host: Host) -> dict[str, str]:
        environ = {name: value for name, value in super().environ(host).items() if name not in _FOREIGN}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token)}
        return {**environ, **token, "RAY_raylet_start_wait_time_s": str(int(DEADLINE))}

    def join(self, *hosts: Host) -> None:
        """Make nodes of hosts that are none, or none any more."""
        with contextlib.ExitStack() as stack:
            more = [f"--address={self.address}", "--num-cpus=1"]
            for start in [stack.enter_context(self.start(host, *_ray_start(host, *more))) for host in hosts]:
                start.finish()

    def restore(self) -> None:
        """Make all others nodes again, in a whole network."""
        missing = [host for host in self if not self._raylets(host)]
        self.heal(*self)
        self.clear(*missing)
        self.join(*missing)

    def raylet(self, host: Host) -> int:
        """Its pid."""
        (pid,) = self._raylets(host)
        return pid

    def actors(self, host: Host) -> list[int]:
        """The pids of our actors on it."""
        return [pid for pid, command in host.processes().items() if command.startswith(_ACTORS)]

    def kill_raylet(self, host: Host) -> None:
        os.kill(self.raylet(host), signal.SIGKILL)

    def ray_stop(self, host: Host, *, force: bool = False) -> None:
        """Return when `ray stop` has; it touches what it sees, which is this host."""
        self.run(host, *_RAY, "stop", *(["--force"] if force else []))

    def clear(self, *hosts: Host) -> None:
        """End Ray on these hosts, and return when nothing runs there any more."""
        for host in hosts:
            self.ray_stop(host, force=True)
        for host in hosts:
            until(lambda host=host: not host.processes(), f"nothing runs on {host.name}", DEADLINE)  # type: ignore[misc]

    def _raylets(self, host: Host) -> list[int]:
        return [pid for pid, command in host.processes().items() if "/raylet/raylet " in command]


def _ray_start(host: Host, *arguments: str) -> list[str]:
    where = [f"--node-ip-address={host.address}", f"--temp-dir={host.directory}"]
    return [*_RAY, "start", *where, *arguments, *_START]
