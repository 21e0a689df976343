"""Make ``import torchvision`` work beside a CPU build of torch.

PyPI's torchvision is built for CUDA. Beside a CPU torch its C++ operators don't load, and its import then fails
with ``operator torchvision::nms does not exist``, which also kills every library that imports torchvision, such as
spikingjelly. Only two schemas are missed at import; nothing here calls the operators behind them.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
from pathlib import Path

import torch


@functools.cache  # the schemas live as long as the Library object does
def guard() -> torch.library.Library | None:
    """Declare the schemas of ``torchvision::nms`` and ``torchvision::qnms`` where the real operators don't load.

    Call this before the first import of torchvision. It is free after the first call.

    Returns:
        The library that holds the two schemas, or ``None`` where nothing had to be done: torchvision is absent,
        its own operators load, or they were declared by somebody else.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _declared() or _load_operators(Path(spec.origin).parent):
        return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    return library


def _declared() -> bool:
    return hasattr(torch.ops.torchvision, "nms")


def _load_operators(folder: Path) -> bool:
    """Load torchvision's extension as torchvision itself will do it again, without importing torchvision."""
    details = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    extension = importlib.machinery.FileFinder(str(folder), details).find_spec("_C")
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)  # type: ignore[no-untyped-call]
    except OSError:  # built against a torch library that this torch doesn't have
        return False
    return _declared()
