"""The peak memory of a piece of code, measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_FRAME = """
import resource, sys
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
{setup}
work({small})
before = peak()
work({large})
print(peak() - before)
"""


def extra_bytes(setup: str, small: str, large: str) -> int:
    """Returns by how many bytes ``work(large)`` raises the peak memory of a process that has done ``work(small)``.

    Arguments:
        setup: Code that defines the function ``work``.
        small: Its arguments for the first call, on so few data that only the code itself takes memory.
        large: Its arguments for the second call.
    """
    code = _FRAME.format(setup=setup, small=small, large=large)
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.split()[-1])
