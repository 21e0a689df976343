import subprocess
import sys
from pathlib import Path

import pytest
import torch

from snnfl import torchvision_guard

FRESH = """
from snnfl.torchvision_guard import guard
library = guard()
assert guard() is library
import torch, torchvision
from torchvision import datasets
from torchvision.transforms import v2
assert "float iou_threshold" in str(torch.ops.torchvision.nms.default._schema)
assert (library is None) == torchvision.extension._has_ops()
"""


def test_torchvision_imports_in_a_fresh_process():
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_real_operators_are_left_alone(monkeypatch):
    def refuse(*args):
        pytest.fail("declared schemas although the operators load")

    monkeypatch.setattr(torch.library, "Library", refuse)
    monkeypatch.setattr(torchvision_guard, "_declared", lambda: False)
    monkeypatch.setattr(torchvision_guard, "_load_operators", lambda folder: True)
    assert torchvision_guard.guard.__wrapped__() is None


def test_an_extension_that_is_missing_or_broken_does_not_load(tmp_path: Path):
    assert not torchvision_guard._load_operators(tmp_path)
    (tmp_path / "_C.so").write_bytes(b"no shared object")
    assert not torchvision_guard._load_operators(tmp_path)
