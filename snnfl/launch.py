"""How a process comes to import `clients/`, `strategies/` and `experiments/`, wherever it runs.

These three are folders at the root of the repository, because a Flower app is its root: ``flwr run .`` bundles them and
a SuperNode imports them by these names. Installed under these names they would be anybody's: a user's project has
folders called ``experiments`` and ``strategies`` more often than not, and whichever stands first on ``sys.path`` hides
the other. So a wheel holds them in ``snnfl/_app/``, where no import finds them by accident, and who needs them loads
them from there by :func:`use_app`: the console commands, the functions of :mod:`snnfl`, and each process that those
start. ``sys.path`` and ``PYTHONPATH`` stay as they are, and what is in the current folder plays no role.

``python -P -m snnfl.launch MODULE [ARGUMENT ...]`` runs one of their modules as ``python -m`` would.
"""

from __future__ import annotations

import gc
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from snnfl.installation import NAMES, app_folder


class HiddenError(ImportError):
    """Packages of ours are hidden by others of the same name; one line."""


def use_app(names: Sequence[str] = NAMES) -> None:
    """Let this process import our packages of these names, wherever it runs.

    Raises:
        HiddenError: If another module of one of their names is imported already.
    """
    for name in names:
        module = sys.modules.get(name)
        if module is None:
            _load(name)
        elif not _ours(name):
            places = [*filter(None, [getattr(module, "__file__", None)]), *getattr(module, "__path__", ()), "here"]
            raise HiddenError(
                f"{places[0]}: imported as {name!r}, which hides snnfl's own package of that name in this process; "
                "give it another name, or call snnfl in another process"
            )
    if not any(isinstance(finder, _Hidden) for finder in sys.meta_path):
        sys.meta_path.append(_Hidden())


@contextmanager
def importing() -> Iterator[None]:
    """Look for no garbage while libraries are imported: all that they make stays.

    PyTorch and Flower take a fifth less time so. Afterwards it is of the oldest generation, as if it had been looked
    through, but where somebody else has frozen objects, which stay so.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()
        if before:
            gc.enable()


def names_in_use() -> tuple[str, ...]:
    """Return which of our packages this process has loaded: those that a worker of its needs."""
    return tuple(name for name in NAMES if name in sys.modules and _ours(name))


def _load(name: str) -> None:
    folder = app_folder() / name
    spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None or not (folder / "__init__.py").is_file():
        raise HiddenError(f"{folder}: no such package; the installation of snnfl is incomplete, install it again")
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _ours(name: str) -> bool:
    places = [Path(entry).resolve() for entry in getattr(sys.modules[name], "__path__", ())]
    return app_folder() / name in places


class _Hidden:
    """The last of ``sys.meta_path``: says why a module of a package that ours hides is not found."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find nothing, and raise if the module's package is ours.

        Raises:
            ModuleNotFoundError: In one line.
        """
        package = name.partition(".")[0]
        if package != name and package in NAMES and package in sys.modules and _ours(package):
            raise ModuleNotFoundError(
                f"No module named {name!r} in {app_folder() / package}: snnfl's own package {package!r} hides others "
                "of that name in a process that calls snnfl; give yours another name, or use it in another process",
                name=name,
            )
        return None


if __name__ == "__main__":
    use_app()
    del sys.argv[0]  # it becomes the name of what runs
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
