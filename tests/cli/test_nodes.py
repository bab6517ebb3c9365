"""`ray-launcher nodes`: what there is, and who runs where."""

from __future__ import annotations

import ray
from held_session import held, told, verb


def test_nodes_are_told_with_what_they_have_and_who_is_there(env: dict[str, str]) -> None:
    with held(env, "one", {"a": "sleep 9999", "b": "sleep 9999"}), held(env, "other", {"a": "sleep 9999"}):
        [node] = told(env, "nodes")
        lines = verb(env, "nodes").stdout.splitlines()
    assert node["procs"] == {"one": 2, "other": 1}
    assert (node["cpus"], node["cpus_free"], node["gpus"]) == (2, 2, 0)
    assert 0 < node["memory_free"] <= node["memory"]
    assert node["labels"] == {"ray.io/node-id": node["node_id"]}
    assert env["RAY_ADDRESS"].startswith(node["ip"])
    assert lines[0].split() == ["NODE", "ADDRESS", "CPUS", "GPUS", "MEMORY", "PROCS", "SESSIONS", "LABELS"]
    assert lines[1].split()[:5] == [node["node_id"][:16], node["ip"], "2", "of", "2"]
    assert lines[1].split()[-2:] == ["3", "2"]


def test_without_a_cluster_it_says_so(env: dict[str, str]) -> None:
    assert not ray.is_initialized()
    assert "no cluster at" in verb({**env, "RAY_ADDRESS": "127.0.0.1:1"}, "nodes", code=125).stderr
