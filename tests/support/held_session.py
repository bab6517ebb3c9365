"""A session with procs on some Ray, held by a driver of its own; and verbs of the command line that look at it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ray_rig import Driver

_HOLD = """
import json, sys, time
import ray
from ray_launcher import LaunchOptions, RayProcLauncher

ray.init("auto", log_to_driver=False, logging_level="error")
with RayProcLauncher(session=sys.argv[1], grace=1) as launcher:
    scripts = json.loads(sys.argv[2])
    launcher.launch_many({name: LaunchOptions(program="sh", args=["-c", script]) for name, script in scripts.items()})
    while [info for info in launcher.procs() if info.state != "RUNNING"]:
        time.sleep(0.02)
    print("READY", flush=True)
    sys.stdin.readline()
    launcher.close(0)
"""


@contextlib.contextmanager
def held(env: Mapping[str, str], session: str, scripts: Mapping[str, str]) -> Iterator[Driver]:
    """A session of that name whose procs, shell scripts by id, all run."""
    driver = Driver(_HOLD, session, json.dumps(scripts), environ=dict(env))
    try:
        assert driver.read() == "READY"
        yield driver
        driver.tell("close")
        assert driver.finish()[0] == 0
    finally:
        driver.close()


def verb(
    env: Mapping[str, str], *words: str, code: int | None = 0, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """`ray-launcher WORDS...`, which ends with that code; None: whichever."""
    command = [sys.executable, "-m", "ray_launcher", *words]
    done = subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=100, check=False)
    assert code in (None, done.returncode), (done.returncode, done.stdout, done.stderr)
    return done


def told(env: Mapping[str, str], *words: str, code: int = 0) -> Any:
    """What a verb prints with --json."""
    return json.loads(verb(env, *words, "--json", code=code).stdout)
