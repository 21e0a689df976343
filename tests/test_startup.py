"""What a command imports: every process of a federation pays for it before its first step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

UNUSED = [
    "datasets",
    "flwr_datasets",
    "matplotlib.pyplot",
    "pandas",
    "ray",
    "scipy.special",
    "scipy.stats",
    "sklearn",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torchmetrics",
    "torchvision",
]
"""Libraries of our dependencies that a run on digits has no use for: each takes half a second of CPU or more,
``scipy.special`` a sixth."""

RUN = """
import json, sys
from snnfl.commands import main
sys.argv = ["snnfl", "run", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)))
"""


def test_a_run_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    options = ["run.rounds=1", "data.clients=2", "training.epochs=1", "conversion.steps=4", "evaluation.images=20"]
    command = [sys.executable, "-c", RUN, "config.yaml", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert imported.isdisjoint(UNUSED), imported.intersection(UNUSED)
    assert {"torch", "flwr", "numba"} <= imported
