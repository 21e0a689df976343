"""Flower's simulation ends with whoever started it, whatever its main thread and Ray do then."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fleet import SECONDS

from strategies.simulation import PROGRAM

ROOT = Path(__file__).parents[2]
SIMULATION = textwrap.dedent(f"""
    import sys, threading, types
    sys.argv[0] = "{PROGRAM}"
    sys.modules["ray"] = types.SimpleNamespace(shutdown={{shutdown}})
    from strategies import simulation
    simulation.END_SECONDS = 1
    simulation.end_in_good_order()
    print("watches", flush=True)
    threading.Event().wait()
""")
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="an orphan keeps its parent's id there")
@pytest.mark.parametrize("shutdown", ["threading.Event().wait", "lambda: open('ray is shut down', 'w')", "None"])
def test_a_simulation_ends_with_its_parent(tmp_path: Path, shutdown: str) -> None:
    command = [sys.executable, "-c", PARENT, SIMULATION.format(shutdown=shutdown)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout as pipe:
        assert pipe.readline() == b"watches\n"
        parent.kill()
        parent.wait()
        assert select.select([pipe], [], [], SECONDS)[0], "its last holder has ended, which closes the pipe"
        assert pipe.read() == b""
    assert (tmp_path / "ray is shut down").exists() == ("open" in shutdown)
