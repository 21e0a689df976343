"""Whether freed memory is used again: a large tensor's pages are the kernel's first, and the process's afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource
import torch
from snnfl.heap import keep_freed_memory
torch.set_num_threads(1)
if {keep}:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    layers = [torch.ones(12_000_000 + 1_000_000 * layer) for layer in range(4)]
for _ in range(5):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of the GNU C library")
def test_memory_that_is_kept_is_not_asked_for_again():
    found = {
        keep: int(subprocess.check_output([sys.executable, "-c", CODE.format(keep=keep)], text=True))
        for keep in (False, True)
    }
    assert found[False] > 5 * 50_000_000 * 4 / 2**21, "at least a page of 2 MB each"
    assert found[True] < found[False] / 4
