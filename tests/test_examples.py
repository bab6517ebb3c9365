"""Every example runs, prints what it is for, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import pytest
from leaks import leaving_nothing

EXAMPLES = Path(__file__).parent.parent / "examples"

PRINTS = {
    "hello": ["Hello from a proc!", "hello exited with code 0"],
    "custom_spawner": ["demo exited with code 3, with the last words ['no disk']"],
    "time_limit": ["true: exited with code 0 []", "yes: killed by SIGTERM ['time limit of 0.5 s reached']"],
    "gang": [
        "all 4 ranks exited with code 0",
        *(f"rank {rank} of 4, local rank {rank % 2}" for rank in range(4)),
        "rank 2 of 4 exited with code 3",
    ],
    "server_pair": [
        "all 4 ranks exited with code 0",
        "server-a killed by SIGTERM",
        "server-b killed by SIGTERM",
    ],
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


#: Run by tests of their own.
ELSEWHERE = {"monarch_ddp", "monarch_mesh", "mpi_sum", "torch_ddp", "vm_spawner"}


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTS) | ELSEWHERE


@pytest.fixture(scope="module")
def ended(cluster: str) -> dict[str, subprocess.CompletedProcess[str]]:
    """All of them, some at once: each takes seconds. Ray warns of more workers than it likes to start."""
    environ = {**os.environ, "RAY_ADDRESS": cluster}

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(EXAMPLES / f"{name}.py")]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=False)

    with leaving_nothing(), futures.ThreadPoolExecutor(3) as pool:
        return dict(zip(PRINTS, pool.map(run, PRINTS), strict=True))


@pytest.mark.parametrize("name", PRINTS)
def test_an_example_prints_its_result(ended: dict[str, subprocess.CompletedProcess[str]], name: str) -> None:
    assert ended[name].returncode == 0, ended[name].stderr
    assert ended[name].stdout.splitlines() == PRINTS[name]
