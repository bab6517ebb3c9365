"""Hundreds of procs with random lives on three nodes while random layers are SIGKILLed; an independent checker counts.

    python benchmarks/chaos.py --minutes 1 --seed 7

Every program writes down its own start and end. Afterwards these stamps are compared with what the exit ports said,
and the machine is searched for what is left. Prints one JSON object to stdout and a table to stderr; exit status 1 if
any count is not 0. The same seed gives the same lives and the same blows, as far as timing allows.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import chaos_checker
import chaos_rest
import harness
from chaos_killer import Killer
from chaos_lives import SLOTS
from chaos_records import LAYERS, Stamps
from chaos_report import print_table, summary
from chaos_run import Run
from chaos_world import World, world

from ray_launcher import LaunchOptions, Placement, RayProcLauncher

#: Seconds: for procs between TERM and KILL at the end, until an unresolved port hangs, until what is left is left.
GRACE, SETTLE, LEFT = 2.0, 60.0, 30.0
#: Seconds without blows at the end of the launches, so that each has launches after it.
CALM = 3.0
#: Seconds beyond the minutes after which a run that does not end is given up.
OVERTIME = 300


def main() -> int:
    """Run, check, print; the exit status."""
    options = _arguments()
    for signum in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(signum, _give_up)
    signal.alarm(int(options.minutes * 60) + OVERTIME)
    with contextlib.redirect_stdout(sys.stderr), world() as cluster:  # where Ray tells of nodes that have died
        result = _chaos(cluster, options)
    text = json.dumps(result, indent=1, default=str)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    print_table(result)
    return int(any(result["counts"].values()))


def _chaos(cluster: World, options: argparse.Namespace) -> dict[str, Any]:
    _warm_up(cluster)
    fds = len(chaos_rest.fds_of_this_process())
    stamps = cluster.root / "stamps"
    stamps.mkdir()
    launcher = RayProcLauncher(grace=GRACE, lease=options.lease)
    run = Run(launcher, cluster, stamps, options.seed)
    killer = Killer(options.seed, options.victims, cluster, run)
    begin = time.monotonic()
    until = begin + options.minutes * 60
    launching = threading.Thread(target=run.launch_until, args=(until, options.rate, options.alive), daemon=True)
    launching.start()
    killer.work(until - CALM)
    launching.join()
    ended = time.monotonic()
    run.settle(SETTLE)
    settled = time.monotonic()
    run.close(12, GRACE)
    closed = time.monotonic()
    left = chaos_rest.rest(launcher.session, stamps, fds, LEFT)
    cases = chaos_checker.cases(run.launches, lambda name: Stamps.read(stamps / name), killer.blows)
    violations = [violation for case in cases for violation in case.violations()]
    if options.launches is not None:
        options.launches.write_text(json.dumps([case.evidence() for case in cases], default=str))
    return {
        "counts": _counts(violations, left, run.raised),
        **summary(run, killer, stamps),
        "seconds": {"chaos": ended - begin, "settling": settled - ended, "closing": closed - settled},
        "fds": {"before": fds, "after": len(chaos_rest.fds_of_this_process())},
        "left": {kind: things for kind, things in left.items() if things},
        "raised": run.raised,
        "blows": [dataclasses.asdict(blow) for blow in killer.blows],
        "violations": [dataclasses.asdict(violation) for violation in violations],
        "seed": options.seed,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": harness.machine(),
    }


def _counts(violations: list[chaos_checker.Violation], left: dict[str, list[str]], raised: list[str]) -> dict[str, int]:
    counts = {kind: sum(violation.kind == kind for violation in violations) for kind in chaos_checker.KINDS}
    return {**counts, "calls_raised": len(raised), **{kind: len(left[kind]) for kind in chaos_rest.KINDS}}


def _warm_up(cluster: World) -> None:
    """A session that nobody strikes: what Ray opens once in a driver is open afterwards."""
    with RayProcLauncher() as launcher:
        for slot in SLOTS:
            _, node_id = cluster.place(slot)
            opts = LaunchOptions(program="true", placement=Placement(node_id=node_id))
            assert launcher.launch(slot, opts).exit_port.wait(60).ok


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="of launches and blows (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default %(default)s)")
    parser.add_argument("--victims", type=_layers, default=list(LAYERS), help=f"some of {','.join(LAYERS)} (all)")
    parser.add_argument("--rate", type=float, default=12.0, help="launches a second (default %(default)s)")
    parser.add_argument("--alive", type=int, default=120, help="procs at once, at the most (default %(default)s)")
    parser.add_argument("--lease", type=float, default=15.0, help="of the session, in seconds (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--launches", type=Path, help="write all that is known of every launch to this file")
    return parser.parse_args()


def _layers(text: str) -> list[str]:
    layers = [layer for layer in text.split(",") if layer]
    if not set(layers) <= set(LAYERS):
        raise argparse.ArgumentTypeError(f"layers are {', '.join(LAYERS)}")
    return layers


def _give_up(signum: int, _frame: object) -> None:
    raise SystemExit(f"ended by {signal.Signals(signum).name}")


if __name__ == "__main__":
    sys.exit(main())
