"""Imports without garbage collection, and what is left of that afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest

from snnfl.launch import importing


class Ring:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.own = self


def test_nothing_is_collected_meanwhile_and_everything_afterwards() -> None:
    rings = list[weakref.ref[Ring]]()

    def fail() -> None:
        rings.append(weakref.ref(Ring()))
        assert not gc.isenabled()
        raise ImportError

    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        fail()
    assert gc.isenabled()
    assert rings[0]() is not None
    gc.collect()
    assert rings[0]() is None


@pytest.mark.parametrize("frozen", [False, True])
def test_what_others_have_frozen_stays_so_and_nothing_else(frozen: bool) -> None:
    code = f"""
import gc
from snnfl.launch import importing
if {frozen}:
    gc.freeze()
before = gc.get_freeze_count()
gc.disable()
with importing():
    import json
assert gc.get_freeze_count() <= before
assert bool(gc.get_freeze_count()) == {frozen}
assert not gc.isenabled()  # as it was
"""
    subprocess.run([sys.executable, "-c", code], check=True)
