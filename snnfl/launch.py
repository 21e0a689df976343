"""Where an installation keeps `clients/`, `strategies/` and `experiments/`, and the console commands that start there.

These three are folders at the root of the repository, because a Flower app is its root: ``flwr run .`` bundles them and
a SuperNode imports them by these names. Installed under these names they would be anybody's: a user's project has folders
called ``experiments`` and ``strategies`` more often than not, and whichever stands first on ``sys.path`` hides the other.
So a wheel holds them in ``snnfl/_app/``, which is no package, and who needs them puts that folder first: the commands
below and the functions of :mod:`snnfl` do, for themselves and for the processes that they start.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

NAMES = ("clients", "strategies", "experiments")


class HiddenError(ImportError):
    """Modules of ours are hidden by others of the same name; one line."""


def app_folder() -> Path:
    """Return the folder that holds ``clients/``, ``strategies/`` and ``experiments/``: of a wheel, or of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_app"
    return installed if installed.is_dir() else package.parent


def use_app() -> Path:
    """Let this process, and those that it starts, import them; return their folder.

    Raises:
        HiddenError: If another module of one of their names is imported already.
    """
    folder = app_folder()
    for name in NAMES:
        module = sys.modules.get(name)
        if module is not None and str(folder / name) not in list(getattr(module, "__path__", ())):
            where = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "an unknown place")
            raise HiddenError(
                f"the module {name!r} of {where} was imported before snnfl's own and hides it; import snnfl first, or "
                "give that folder another name"
            )
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))
    others = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry != str(folder)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, others)])
    return folder


def main() -> None:
    """The command ``snnfl``."""
    use_app()
    from experiments.cli import main as run

    run()


def flower_simulation() -> None:
    """The command ``flower-simulation``."""
    use_app()
    from experiments.flower_simulation import main as run

    run()
