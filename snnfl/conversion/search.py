"""The choice among ways to convert, by calibration images alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from snnfl.config import ConversionConfig
from snnfl.spiking.network import SpikingNetwork

Convert: TypeAlias = Callable[[Tensor, ConversionConfig], SpikingNetwork]


def choose(
    candidates: Sequence[ConversionConfig], convert: Convert, images: Tensor
) -> tuple[ConversionConfig, tuple[float, ...]]:
    """Choose how to convert: each way calibrates on every other image, and is judged by those between.

    A score is the mean divergence of the spiking network's classes from the ANN's, ``KL(softmax(a) || softmax(s))``,
    ``a`` being the logits of the analog twin without calibration. So no label is needed, and no image is both fitted
    and judged.

    Args:
        candidates: Ways to convert, the first of equals wins.
        convert: Converts a network on images.
        images: Calibration images, ``[N, ...]``, at least two.

    Returns:
        The best way, and the scores of all.

    Raises:
        ValueError: If there is one image.
    """
    if len(images) < 2:
        raise ValueError(f"{len(images)} calibration image: a search judges on others than it calibrates on; give more")
    fitted, judged = images[::2], images[1::2]
    reference = convert(fitted, candidates[0].without_calibration()).analog(judged).log_softmax(1)
    scores = []
    for config in candidates:
        found = convert(fitted, config)(judged).log_softmax(1)
        divergence = torch.nn.functional.kl_div(found, reference, reduction="batchmean", log_target=True)
        scores.append(float(divergence))
    return candidates[min(range(len(scores)), key=scores.__getitem__)], tuple(scores)
