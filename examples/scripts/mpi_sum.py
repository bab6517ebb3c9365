"""Every rank adds its number to a sum that all of them get."""

import sys

from mpi4py import MPI

world = MPI.COMM_WORLD
total = world.allreduce(world.rank)
sys.stdout.write(f"rank {world.rank} of {world.size}: the sum is {total}\n")  # in one piece: others write there, too
