"""One minute of chaos: `benchmarks/chaos.py` as a user runs it, with every layer among the victims."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "chaos.py"
#: Seconds that the script gives itself, beyond its minute, before it breaks off and cleans up; and for that.
LIMIT = 60 + 300 + 60


@pytest.mark.timeout(LIMIT + 30)
def test_a_minute_of_chaos_loses_doubles_and_leaves_nothing() -> None:
    environ = {**os.environ, "TMPDIR": os.environ["PYTEST_DEBUG_TEMPROOT"]}  # short: it makes a directory of its own
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), "--minutes", "1", "--seed", "3"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as chaos:
        try:
            stdout, stderr = chaos.communicate(timeout=LIMIT)
        finally:
            chaos.terminate()  # after which it cleans up, should this test have been interrupted
    assert chaos.returncode == 0, f"{stderr}\n{stdout}"
    result = json.loads(stdout)
    assert result["launches"] >= 100
    assert all(result["kills"].values()), result["kills"]
