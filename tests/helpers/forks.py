"""A process that forks while its threads are at work, to see whether its children hang."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

_PROGRAM = """
import os, sys, threading, time, warnings
import torch

warnings.simplefilter("ignore")  # Python's own, of forks under threads
torch.set_num_threads(1)
{work}
once()
stop = False

def run():
    while not stop:
        under_load()

threads = [threading.Thread(target=run, daemon=True) for _ in range({threads})]
for thread in threads:
    thread.start()
hung = 0
for _ in range(40):
    child = os.fork()
    if child == 0:
        once()
        os._exit(0)
    end = time.monotonic() + 20
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            hung += 1
            os.kill(child, 9)
            os.waitpid(child, 0)
            break
        time.sleep(0.001)
stop = True
for thread in threads:
    thread.join()  # an interpreter that ends under a thread in torch is aborted
sys.exit(hung)
"""


def hung_children(work: str, *, threads: int, timeout: int) -> int:
    """How many of forty children do not end.

    Args:
        work: defines ``once``, what the parent does first and every child does, and
            ``under_load``, what the threads do again and again.
        threads: how many of them there are.
        timeout: seconds that all may take.
    """
    program = _PROGRAM.format(work=work, threads=threads)
    return subprocess.run([sys.executable, "-c", program], timeout=timeout, check=False).returncode
