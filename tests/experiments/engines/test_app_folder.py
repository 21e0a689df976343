"""The folder that ``flwr run`` bundles (that of a wheel: tests/test_installed.py)."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from experiments.engines.app_folder import flower_app
from snnfl.config import ConfigError
from snnfl.plugins import Plugin

ROOT = Path(__file__).parents[3]


def bundled(folder: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder))) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != ".info/CONTENT"}


def test_plugins_travel_in_their_order_and_nothing_else_changes() -> None:
    with flower_app() as app:
        assert app == ROOT
    named = []
    for name in ("zebra.py", "test_ant.py", "model_test.py"):  # Flower leaves out test_*.py and *_test.py
        named.append(Plugin(name=name, path=f"/{name}", source=b"# " + name.encode(), version=""))
    named.append(Plugin(name="theirs", version="theirs 1.0", installed=True))
    with flower_app(named) as app:
        found = bundled(app)
    shipped = {name: found.pop(name) for name in list(found) if "_shipped" in name}
    assert shipped == {
        "snnfl/_shipped/00_zebra_plugin.py": b"# zebra.py",
        "snnfl/_shipped/01_test_ant_plugin.py": b"# test_ant.py",
        "snnfl/_shipped/02_model_test_plugin.py": b"# model_test.py",
    }
    assert found == bundled(ROOT)
    assert not app.exists()


def test_a_module_is_refused() -> None:
    module = Plugin(name="my.module", version="")
    words = r"^plug-in my\.module: a deployment ships plug-ins that are named by their file"
    with pytest.raises(ConfigError, match=words), flower_app([module]):
        pass
