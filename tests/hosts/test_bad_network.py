"""A slow network, and one that loses packets: nothing is lost, nothing runs twice, every result is right."""

from __future__ import annotations

import time

import pytest
from ray_hosts import RayHosts
from remote import WORKER, Proc, Session

pytestmark = pytest.mark.timeout(300)  # a cluster starts, and all waits have deadlines

BAD = {"200 ms late": {"delay": 0.2}, "30 % lost": {"sent": 0.3}, "both": {"sent": 0.3, "delay": 0.2}}
#: Seconds between launches, and of all of them.
PACE, DURATION = 0.5, 60


@pytest.mark.slow
def test_nothing_is_lost_on_a_bad_network(hosts: RayHosts, observer: Session) -> None:
    """One bad network per host at the same time."""
    ways = dict(zip((hosts["a"], hosts["b"], hosts["c"]), BAD.values(), strict=True))
    with Session(hosts, hosts.head) as session:
        staying = session.start_on(ways, WORKER, "stays on {}")
        pids = [proc.pids() for proc in staying]
        statuses: dict[str, tuple[Proc, int]] = {}
        try:
            for host, treatment in ways.items():
                hosts.lose(host, **treatment)
            over = time.monotonic() + DURATION
            while time.monotonic() < over:
                for host in ways:
                    status = len(statuses) % 100
                    proc = session.launch(f"{len(statuses)}", host, WORKER)
                    proc.exit(status)
                    statuses[proc.proc_id] = proc, status
                time.sleep(PACE)
            results = {proc_id: session.ended(proc) for proc_id, (proc, _) in statuses.items()}
        finally:
            hosts.heal(*ways)
        told = {proc_id: exit_.returncode for proc_id, exit_ in results.items()}
        assert told == {proc_id: status for proc_id, (_, status) in statuses.items()}
        assert {proc.noted().count("start") for proc, _ in statuses.values()} == {1}
        assert [proc.pids() for proc in staying] == pids
        for proc in staying:
            proc.exit(0)
        assert [session.ended(proc).returncode for proc in staying] == [0] * len(staying)
        session.close()
        assert len(session.exits) == len(statuses) + len(staying)
