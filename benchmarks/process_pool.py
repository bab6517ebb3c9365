"""Calls per second of the standard library's process pool with a process per call: for `calls`, argv: calls, workers.

A script of its own, because each of these processes imports it again: it must not bring Ray.
"""

import multiprocessing
import operator
import sys
import time
from concurrent.futures import ProcessPoolExecutor

if __name__ == "__main__":
    count, workers = map(int, sys.argv[1:])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
        assert pool.submit(operator.neg, 1).result() == -1  # warm
        start = time.perf_counter()
        values = list(pool.map(operator.neg, range(count)))
        print(count / (time.perf_counter() - start))
    assert values == [-number for number in range(count)]
