"""The folder of our Flower app, which ``flwr run`` bundles: that of a checkout, or one put together for a run.

One is put together from a wheel, and for plug-ins, which travel with the app: ``snnfl/_shipped/NUMBER_NAME_plugin.py``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from snnfl import launch
from snnfl.config import ConfigError
from snnfl.installation import NAMES, app_folder
from snnfl.plugins import ENDING, GROUP, SHIPPED, Plugin

METADATA = ("pyproject.toml", "README.md", "LICENSE")
"""What the app holds beside its modules."""


@contextmanager
def flower_app(plugins: Sequence[Plugin] = ()) -> Iterator[Path]:
    """Yield the folder of our Flower app, with a run's plug-ins; one put together lasts as long as the block.

    Raises:
        ConfigError: For a plug-in that cannot travel with it.
    """
    root, files = app_folder(), _files_of(plugins)
    if root.name != "_app" and not files:
        yield root
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder)
        for name in METADATA:
            shutil.copyfile(root / name, whole / name)
        for name, source in (("snnfl", Path(launch.__file__).parent), *((name, root / name) for name in NAMES)):
            shutil.copytree(source, whole / name, ignore=shutil.ignore_patterns("__pycache__", "_app"))
        for number, (name, content) in enumerate(files):
            shipped = whole / "snnfl" / SHIPPED.name
            shipped.mkdir(exist_ok=True)
            (shipped / f"{number:02d}_{name.removesuffix('.py')}{ENDING}").write_bytes(content)
        yield whole


def _files_of(plugins: Sequence[Plugin]) -> list[tuple[str, bytes]]:
    """Return name and content of the plug-ins that must travel; those of installed packages are the nodes' own affair.

    Raises:
        ConfigError: For a module that isn't a whole file.
    """
    files = []
    for plugin in plugins:
        if plugin.source is not None:
            files.append((plugin.name, plugin.source))
        elif not plugin.installed:
            raise ConfigError(
                f"plug-in {plugin.name}: a deployment ships plug-ins that are named by their file, not modules; say "
                f"--plugin FILE.py, or install its package on every node, with an entry point of the group {GROUP}"
            )
    return files
