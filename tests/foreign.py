"""A Flower app that isn't ours: the one of the how-to, in a folder of its own, run by calling its two apps."""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from experiments.engines.in_process import run_in_process
from strategies.population import seeded_draws

PAGE = Path(__file__).parents[1] / "docs/how-to/audit-your-flower-app.md"
FILE = re.compile(r"^ *```python title=\"(?P<title>.+?)\"\n(?P<code>.*?)^ *```$", re.DOTALL | re.MULTILINE)
MODULES = ("task", "client_app", "server_app")


def write_app(folder: Path) -> Path:
    """Write the files of the page."""
    for match in FILE.finditer(PAGE.read_text(encoding="utf-8")):
        (folder / match["title"]).write_text(textwrap.dedent(match["code"]), encoding="utf-8")
    return folder


def edit(file: Path, old: str, new: str) -> None:
    """Replace a text that is there."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@contextmanager
def imported(folder: Path) -> Iterator[dict[str, ModuleType]]:
    """Import the app's modules from its folder, for a while."""
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(folder))
        for name in MODULES:
            sys.modules.pop(name, None)


def run_app(folder: Path, clients: int = 4, **node_config: str) -> Path:
    """Run the app in this process."""
    with imported(folder) as modules, seeded_draws(0, 0, "selection"):  # sums depend on the order of the nodes
        apps = (modules["server_app"].app, modules["client_app"].app)
        run_in_process(*apps, run_config={}, clients=clients, node_config=node_config)
    return folder
