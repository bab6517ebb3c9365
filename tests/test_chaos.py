"""Chaos for a while: `benchmarks/chaos.py` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "chaos.py"
#: Seconds that the script gives itself, beyond a minute, before it breaks off and cleans up; and for that.
LIMIT = 60 + 300 + 60

pytestmark = pytest.mark.timeout(LIMIT + 30)


def chaos(minutes: float) -> Any:
    """What it tells in the end."""
    environ = {**os.environ, "TMPDIR": os.environ["PYTEST_DEBUG_TEMPROOT"]}  # short: it makes a directory of its own
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), "--minutes", str(minutes), "--seed", "3"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as script:
        try:
            stdout, stderr = script.communicate(timeout=LIMIT)
        finally:
            script.terminate()  # after which it cleans up, should this test have been interrupted
    assert script.returncode == 0, f"{stderr}\n{stdout}"
    return json.loads(stdout)


def test_chaos_loses_doubles_and_leaves_nothing() -> None:
    assert chaos(1 / 4)["launches"] >= 20


@pytest.mark.slow
def test_a_minute_of_chaos_has_every_layer_among_its_victims() -> None:
    result = chaos(1)
    assert result["launches"] >= 100
    assert all(result["kills"].values()), result["kills"]
