"""Sources that come with scikit-learn and need no download.

They have no published test split. A fifth of the examples, drawn once with the same share of each class, is theirs:
the draw depends on ``SPLIT_SEED`` and never on the seed of a run, so that all runs are tested on the same examples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnfl.data.dataset import Dataset
from snnfl.data.sources import register

SPLIT_SEED = 0
TEST_SHARE = 0.2


@register("digits")
def digits(root: Path) -> Dataset:
    """Read 1,797 handwritten digits of 8x8 pixels, valued 0..16 (UCI, Alpaydin and Kaynak 1998).

    Cropping pads by one pixel: that is an eighth of the width, as the usual four pixels are for 32x32 images.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return _split("digits", bunch.images[:, None], bunch, padding=1)


@register("iris")
def iris(root: Path) -> Dataset:
    """Read 150 flowers of 3 classes with 4 features in cm (Fisher 1936)."""
    from sklearn.datasets import load_iris

    bunch = load_iris()
    return _split("iris", bunch.data, bunch)


@register("breast_cancer")
def breast_cancer(root: Path) -> Dataset:
    """Read 569 tumours of 2 classes with 30 features (Wisconsin Diagnostic, Street et al. 1993)."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    return _split("breast_cancer", bunch.data, bunch)


def standardisation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and population standard deviation of each channel or feature of a training split.

    Args:
        images: Shape ``[N, C, H, W]`` or ``[N, features]``.

    Returns:
        ``float32`` mean and standard deviation, of shape ``[C]`` or ``[features]``.
    """
    others = [axis for axis in range(images.dim()) if axis != 1]
    std, mean = torch.std_mean(images.double(), dim=others, correction=0)
    return mean.float(), std.float()


def _split(name: str, values: np.ndarray[Any, Any], bunch: Any, padding: int = 4) -> Dataset:
    from sklearn.model_selection import train_test_split

    train_images, test_images, train_labels, test_labels = (
        torch.from_numpy(part)
        for part in train_test_split(
            values.astype(np.float32),
            bunch.target.astype(np.int64),
            test_size=TEST_SHARE,
            stratify=bunch.target,
            random_state=SPLIT_SEED,
        )
    )
    mean, std = standardisation(train_images)
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=tuple(map(str, bunch.target_names)),
        mean=mean,
        std=std,
        padding=padding,
    )
