"""An MPI program on two nodes, with MPICH's mpiexec and without ssh (pip install mpich mpi4py)."""

import sys
from pathlib import Path

from ray_launcher.integrations import mpi

SCRIPT = Path(__file__).parent / "scripts" / "mpi_sum.py"
MPIEXEC = Path(sys.executable).with_name("mpiexec.hydra")

print(mpi.run([sys.executable, SCRIPT], nnodes=2, nproc_per_node=2, mpiexec=str(MPIEXEC)))
