"""The Grafana dashboard asks for the metrics that there are, as Ray exports them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ray_launcher
from ray_launcher.cluster import metrics

DASHBOARD = Path(ray_launcher.__file__).parent / "dashboards" / "ray_launcher.json"
_OF_HISTOGRAM = ("_bucket", "_count", "_sum")
#: How Ray calls them on its port: a prefix of its own, and what Prometheus adds for each kind.
EXPORTED = {
    metrics.PROCS: ("",),
    metrics.SUPERVISOR_BYTES: ("",),
    metrics.EXITS: ("_total",),
    metrics.RESTARTS: ("_total",),
    metrics.LAUNCH_SECONDS: _OF_HISTOGRAM,
    metrics.EXIT_NOTICE_SECONDS: _OF_HISTOGRAM,
}
NAMES = {f"ray_{name}{end}": name for name, ends in EXPORTED.items() for end in ends}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def test_every_panel_has_a_title_and_a_query() -> None:
    assert panels()
    for panel in panels():
        assert panel["title"]
        assert panel["targets"]
        assert all(target["expr"] for target in panel["targets"])


def test_every_metric_that_is_asked_for_exists_and_every_one_that_exists_is_asked_for() -> None:
    named = set(re.findall(r"\bray_\w+", DASHBOARD.read_text())) - {"ray_launcher"}
    assert named <= set(NAMES)
    assert {NAMES[name] for name in named} == set(EXPORTED)


def test_panels_are_told_apart() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()}) == len(panels())
