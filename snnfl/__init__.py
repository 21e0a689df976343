"""Federated learning with spiking neural networks: run it, attack it, compare it, and convert networks of your own.

- ``run(config)`` runs a federation and returns a ``Run``; ``load_run(path)`` reads an earlier one.
- ``audit(runs)`` attacks what the server of runs has seen, and returns an ``Audit``.
- ``compare(study)`` runs the cells of a study, and returns a ``Study``.
- ``convert(model, images)`` makes a spiking network of a trained one.
- ``membership(networks, inputs, labels, members)`` asks of trained networks who was in, and returns a ``Membership``.
- ``privatesnn(study)`` publishes networks that are converted without data, and returns a ``Published``.
- ``Config`` holds the options of a run, ``ConversionConfig`` those of a conversion; mistakes are a ``ConfigError``.

>>> import snnfl
>>> run = snnfl.run(data={"clients": 3}, run={"rounds": 2, "name": "first"})  # doctest: +SKIP
>>> accuracies = [row["server_snn_accuracy"] for row in run.metrics]  # doctest: +SKIP

The functions are those of :mod:`snnfl.api`, imported when they are first asked for; docs/python.md shows each at work.
The packages below this one are the science, in pure PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnfl.api import audit, compare, convert, load_run, membership, privatesnn, run
    from snnfl.config import Config, ConfigError, ConversionConfig
    from snnfl.results import Audit, Membership, Published, Run, Study

__all__ = [
    "Audit",
    "Config",
    "ConfigError",
    "ConversionConfig",
    "Membership",
    "Published",
    "Run",
    "Study",
    "audit",
    "compare",
    "convert",
    "load_run",
    "membership",
    "privatesnn",
    "run",
]
__version__ = "0.1.0"

_OF_CONFIG = {"Config", "ConfigError", "ConversionConfig"}


def __getattr__(name: str) -> Any:
    """Import what is asked for: PyTorch and Flower take seconds, and ``import snnfl`` needs neither."""
    if name not in __all__:
        raise AttributeError(f"module 'snnfl' has no attribute {name!r}")
    value = getattr(import_module("snnfl.config" if name in _OF_CONFIG else "snnfl.api"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List what is offered, without the packages that happen to be imported by now."""
    return sorted([*__all__, "__version__"])
