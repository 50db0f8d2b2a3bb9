"""A process that keeps freed memory takes few new pages."""

import platform
import subprocess
import sys

import pytest

_FAULTS_A_ROUND = """
import resource
import numpy as np
from rlcls.training import memory

memory.reuse_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def two_batches():
    one, other = np.ones(1 << 20, np.uint8), np.ones(1 << 20, np.uint8)

for _ in range(5):
    two_batches()
before = faults()
for _ in range(100):
    two_batches()
print((faults() - before) / 100)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_large_arrays_reuse_the_pages_of_freed_ones():
    """Two arrays have 512 pages. By default nearly all of them are new in every round."""
    done = subprocess.run([sys.executable, "-c", _FAULTS_A_ROUND], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20


def test_a_c_library_without_mallopt_is_no_error(monkeypatch):
    from rlcls.training import memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.reuse_freed_memory()
