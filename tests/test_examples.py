"""Every example runs, prints what it is for, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

PRINTS = {
    "hello": ["Hello from a proc!", "hello exited with code 0"],
    "custom_spawner": ["demo exited with code 3, with the last words ['no disk']"],
    "time_limit": ["true: exited with code 0 []", "yes: killed by SIGTERM ['time limit of 0.5 s reached']"],
    "stderr_tail": [
        "unlucky exited with code 7; its last lines:",
        "  | step 998",
        "  | step 999",
        "  | out of luck",
    ],
    "async_wait": [
        "sleep 0.2: exited with code 0",
        "sleep 0.6: exited with code 0",
        "sleep 9999: killed by SIGTERM",
    ],
}


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("name", PRINTS)
def test_an_example_prints_its_result(cluster: str, name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        env={**os.environ, "RAY_ADDRESS": cluster},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == PRINTS[name]
