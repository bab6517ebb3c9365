"""Arithmetic of ranks: what a group needs, and whose device is whose."""

from __future__ import annotations

import pytest

from ray_launcher import gang_env
from ray_launcher.ranks import Member, Shape, for_all, rank_env, share_of


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


def test_the_environment_of_a_rank_is_known_before_the_launch_but_for_three_variables() -> None:
    env = gang_env("job", 3, nnodes=2, nproc_per_node=2)
    unknown = {name for name, value in env.items() if value is None}
    assert unknown == {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"}
    launched = rank_env(Member(Shape("uid", "job", 2, 2), 3), "host", 1234)
    assert env == {**launched, **dict.fromkeys(unknown)}


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_that_a_gang_does_not_have_has_no_environment(rank: int) -> None:
    with pytest.raises(ValueError, match="rank must be 0 to 3 in a gang of 2 x 2"):
        gang_env("job", rank, nnodes=2, nproc_per_node=2)
