"""Warnings of conversions that can hardly be right: of images that tell nothing, of layers that are silent."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor


class ConversionWarning(UserWarning):
    """A conversion whose result says little of other images."""


def check_variety(images: Tensor) -> None:
    """Warn of calibration images that are constant, or all the same: thresholds and biases fit nothing else."""
    low, high = images.aminmax()
    if low == high:
        what = f"hold one number alone, {float(low):g}"
    elif len(images) > 1 and bool((images[1:] == images[:1]).all()):
        what = f"are {len(images)} times the same"
    else:
        return
    warnings.warn(
        f"calibration images {what}: thresholds and biases will fit no other; give images as the network was trained "
        "on, normalised alike",
        ConversionWarning,
        stacklevel=4,
    )


def warn_of_silence(layers: Sequence[str], steps: int) -> None:
    """Warn of layers of which no neuron ever fires: what is behind them sees biases alone."""
    if layers:
        warnings.warn(
            f"{', '.join(layers)}: no neuron fires in {steps} time steps on any calibration image; give more steps, "
            "or images that activate the layer",
            ConversionWarning,
            stacklevel=4,
        )
