"""Random launches, gangs, ends and failures: at every step no GPU is given away twice, and in the end all is back."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import pytest
from node_rig import until
from ray_rig import ALL, DEADLINE, end_all, ended, free, shell

from ray_launcher import LaunchOptions, LaunchResult, Placement, RayProcLauncher

#: What is needed of one GPU at most, and how it shows: procs ask for whole ones, or halves.
_SHARES = [0.5, 1, 2]
#: Launches that are open at once: about half of them wait.
_CROWD = 12


class Storm:
    """Launches whatever comes to its mind; every proc writes down what it sees."""

    def __init__(self, launcher: RayProcLauncher, directory: Path, seed: int) -> None:
        self._launcher, self._directory = launcher, directory
        self._chance = random.Random(seed)  # noqa: S311  # noise, no secret
        self._shares: dict[str, float] = {}
        self.launched: list[LaunchResult] = []
        self.seen = 0  # GPUs in use, at all steps together

    def step(self, number: int) -> None:
        what = self._chance.random()
        if what < 0.5:
            share = self._chance.choice(_SHARES)
            opts = self._options(f"storm {number}", share, self._patience())
            self._add([self._launcher.launch(f"storm {number}", opts)], share)
        elif what < 0.7:
            self._gang(f"storm {number}")
        elif self.launched:
            proc_id = self._chance.choice(self.launched).proc_id
            if self._chance.random() < 0.5:
                self._launcher.kill(proc_id)
            else:
                self._launcher.terminate(proc_id, self._chance.choice([0.0, 1.0]))
        self.check()
        while len(self._launcher.active_procs) > _CROWD:
            eldest = until(self._eldest, "one of them runs", DEADLINE)[0]
            self._launcher.kill(eldest.proc_id)
            ended(eldest.exit_port)
            self.check()

    def _eldest(self) -> list[LaunchResult]:
        """Those that run, the one that was launched first before the others; one that has just ended will do."""
        running = {info.proc_id for info in self._launcher.procs() if info.state in ("RUNNING", "EXITED")}
        return [each for each in self.launched if not each.exit_port.done() and each.proc_id in running]

    def check(self) -> None:
        """Of those that hold a lease now."""
        taken: dict[tuple[str | None, str], float] = defaultdict(float)
        for info in self._launcher.procs():
            seen = self._file(info.proc_id)
            if info.state in ("RUNNING", "TERMINATING") and info.proc_id in self._shares and seen.exists():
                share = self._shares[info.proc_id]
                for gpu in seen.read_text().split(","):
                    taken[info.node_id, gpu] += min(share, 1)
        self.seen += len(taken)
        assert all(share <= 1 for share in taken.values()), taken

    def _gang(self, gang_id: str) -> None:
        share, patience = self._chance.choice([0.5, 1]), self._patience()
        gang = self._launcher.launch_gang(
            gang_id,
            lambda rank: self._options(f"{gang_id}/{rank}", share, patience),
            nnodes=self._chance.choice([1, 2]),
            nproc_per_node=self._chance.choice([1, 2]),
            strategy=self._chance.choice(["SPREAD", "PACK"]),
        )
        self._add(gang.ranks, share)

    def _add(self, launched: list[LaunchResult], share: float) -> None:
        self._shares.update((each.proc_id, share) for each in launched)
        self.launched += launched

    def _file(self, proc_id: str) -> Path:
        return self._directory / proc_id.replace("/", "-").replace(" ", "-")

    def _patience(self) -> float | None:
        return self._chance.choice([None, 2.0])

    def _options(self, proc_id: str, share: float, patience: float | None) -> LaunchOptions:
        """It lives for a while, perhaps fails; how many it sees tells whether they are as many as it asked for."""
        seen = self._file(proc_id)
        life, code = self._chance.choice(["0", "0.05", "0.3", "9999"]), self._chance.choice([0, 0, 3])
        script = f"echo -n $CUDA_VISIBLE_DEVICES > {seen}.draft; mv {seen}.draft {seen}; sleep {life}; exit {code}"
        return shell(script, Placement(num_gpus=share, gpu_mask="proc", timeout=patience))


def _weather(launcher: RayProcLauncher, directory: Path, steps: int, seed: int) -> None:
    storm = Storm(launcher, directory, seed)
    for number in range(steps):
        storm.step(number)
    end_all(launcher)
    for proc in storm.launched:
        ended(proc.exit_port)
    assert storm.seen > steps / 2
    until(lambda: free() == ALL, "all resources are back", DEADLINE)


def test_no_gpu_is_given_away_twice_and_all_are_back(shared: RayProcLauncher, tmp_path: Path) -> None:
    _weather(shared, tmp_path, 60, 1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nor_in_five_hundred_steps(shared: RayProcLauncher, tmp_path: Path) -> None:
    _weather(shared, tmp_path, 500, 2)
