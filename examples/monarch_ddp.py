"""Monarch on a Ray cluster: a script that was written for torchrun, by Monarch's SPMD, in four procs on two hosts."""

import tempfile
from pathlib import Path

from monarch.spmd import SPMDActor

from ray_launcher import RayProcLauncher
from ray_launcher.integrations.monarch import RayJob

SCRIPT = Path(__file__).parent / "scripts" / "ddp.py"

job = RayJob({"trainers": 2}, strategy="SPREAD", env={"OMP_NUM_THREADS": "1"})
try:
    procs = job.state(cached_path=None).trainers.spawn_procs(per_host={"gpus": 2})
    ranks = procs.spawn("ranks", SPMDActor)
    address, port = ranks.slice(hosts=0, gpus=0).get_host_port.call_one(None).get()
    with tempfile.TemporaryDirectory() as directory:
        ranks.main.call(address, port, [str(SCRIPT), "--checkpoint", f"{directory}/checkpoint"]).get()
    for line in RayProcLauncher.find(job.session).logs(job.workers("trainers")[0].proc_id):
        print(line)
finally:
    job.kill()
