"""Arithmetic of ranks: what a group needs, and whose device is whose."""

from __future__ import annotations

import pytest

from ray_launcher.ranks import for_all, share_of


@pytest.mark.parametrize(
    "share, nproc, gpus", [(0.5, 2, 1), (0.5, 3, 2), (0.4, 2, 0.8), (0.4, 3, 2), (1 / 3, 3, 1), (2, 3, 6)]
)
def test_shares_do_not_span_gpus(share: float, nproc: int, gpus: float) -> None:
    assert for_all({"GPU": share}, nproc)["GPU"] == pytest.approx(gpus)


def test_what_is_no_gpu_adds_up() -> None:
    assert for_all({"CPU": 0.5, "memory": 10}, 3) == {"CPU": 1.5, "memory": 30}


@pytest.mark.parametrize(
    "share, seen",
    [
        (2, [["a", "b"], ["c", "d"]]),
        (1, [["a"], ["b"]]),
        (0.5, [["a"], ["a"], ["b"], ["b"]]),
        (0.4, [["a"], ["a"], ["b"]]),
    ],
)
def test_every_rank_has_devices_of_its_own(share: float, seen: list[list[str]]) -> None:
    assert [share_of(["a", "b", "c", "d"], share, local) for local in range(len(seen))] == seen


def test_no_share_is_no_device() -> None:
    assert share_of(["a"], 0, 0) == []
