"""The command `ray-launcher run` in processes of their own, and a Ray for them that ends with the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any

from node_rig import until

#: Seconds after which a wait fails; Ray takes its time where other tests run.
DEADLINE = 100.0
LAUNCHER = [sys.executable, "-m", "ray_launcher"]
COMMAND = [*LAUNCHER, "run"]

_RAY = """
import sys
import ray
context = ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
                   object_store_memory=100 << 20, logging_level="error")
print(context.address_info["address"], flush=True)
sys.stdin.read()  # until who started this is gone
"""


class OwnRay:
    """A cluster of one node. It ends with `stop`, or when the process that made it is gone.

    env: more of what its workers find in their environment.
    """

    def __init__(self, **env: str) -> None:
        self._env = env
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RAY],
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().decode().strip()
        assert self.address, "Ray did not start"

    def stop(self) -> None:
        with self._process:  # closes its stdin
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(DEADLINE)
            finally:
                self._process.kill()

    def environ(self) -> dict[str, str]:
        """For commands that shall use it."""
        return {**os.environ, **self._env, "RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token"}


class Run:
    """One command under way, and all that it has written so far. See `running`."""

    def __init__(
        self,
        *args: str,
        env: Mapping[str, str],
        stdout: int | IO[bytes] = subprocess.PIPE,
        verb: str = "run",
        stdin: int | IO[bytes] = subprocess.DEVNULL,
    ) -> None:
        self.process = subprocess.Popen(
            [*LAUNCHER, verb, *args], env=env, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE
        )
        self.out, self.err = bytearray(), bytearray()
        pairs = [(self.process.stdout, self.out), (self.process.stderr, self.err)]
        self._readers = [threading.Thread(target=_collect, args=pair, daemon=True) for pair in pairs]
        for reader in self._readers:
            reader.start()

    def sees(self, *texts: str) -> None:
        """Return when it has written all of them, to whichever stream."""
        until(lambda: self.process.poll() is not None or self._has(texts), f"{texts} in the output", DEADLINE)
        assert self._has(texts), f"ended with {self.process.returncode}; stdout: {self.out!r}; stderr: {self.err!r}"

    def stop(self) -> None:
        self.process.kill()
        with self.process:
            pass

    def interrupt(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)  # does nothing when it has ended

    def ended(self) -> int:
        """Its exit code, and all output is there."""
        code = self.process.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
            assert not reader.is_alive(), "somebody holds its output open"
        return code

    @property
    def says(self) -> list[str]:
        """The lines on stderr."""
        return self.err.decode().splitlines()

    def _has(self, texts: tuple[str, ...]) -> bool:
        return all(text.encode() in self.out + b"\0" + self.err for text in texts)


@contextlib.contextmanager
def running(*args: str, env: Mapping[str, str], **how: Any) -> Iterator[Run]:
    """A command, killed at the end of the block if it still runs; how: see `Run`."""
    run = Run(*args, env=env, **how)
    try:
        yield run
    finally:
        run.stop()


def _collect(stream: IO[bytes] | None, into: bytearray) -> None:
    while stream is not None and (data := stream.read1(1 << 16)):  # type: ignore[attr-defined]
        into += data
