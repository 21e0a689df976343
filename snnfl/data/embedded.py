"""Sources that come with scikit-learn and need no download.

They have no published test split. A fifth of the examples, drawn once with the same share of each class, is theirs:
the draw depends on ``SPLIT_SEED`` and never on the seed of a run, so that all runs are tested on the same examples.

Every process of a federation loads its data, and importing scikit-learn takes a second. So its files are read, and its
split is drawn, without it; tests hold both equal to what it returns.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from snnfl.data.dataset import Dataset
from snnfl.data.sources import register

Numbers: TypeAlias = np.ndarray[Any, Any]

SPLIT_SEED = 0
TEST_SHARE = 0.2


@register("digits")
def digits(root: Path) -> Dataset:
    """Read 1,797 handwritten digits of 8x8 pixels, valued 0..16 (UCI, Alpaydin and Kaynak 1998).

    Cropping pads by one pixel: that is an eighth of the width, as the usual four pixels are for 32x32 images.
    """
    table = np.loadtxt(_file("digits.csv.gz"), delimiter=",")
    images = table[:, :-1].reshape(-1, 1, 8, 8)
    return _split("digits", images, table[:, -1], tuple(map(str, range(10))), padding=1)


@register("iris")
def iris(root: Path) -> Dataset:
    """Read 150 flowers of 3 classes with 4 features in cm (Fisher 1936)."""
    return _table("iris")


@register("breast_cancer")
def breast_cancer(root: Path) -> Dataset:
    """Read 569 tumours of 2 classes with 30 features (Wisconsin Diagnostic, Street et al. 1993)."""
    return _table("breast_cancer")


def standardisation(images: Tensor, *, axis: int = 1) -> tuple[Tensor, Tensor]:
    """Return mean and population standard deviation of each channel or feature of a training split.

    Args:
        images: Shape ``[N, C, H, W]`` or ``[N, features]``; of sequences ``[N, T, features]``.
        axis: Where the channels or features are: 2 of sequences.

    Returns:
        ``float32`` mean and standard deviation, of shape ``[C]`` or ``[features]``.
    """
    others = [other for other in range(images.dim()) if other != axis]
    std, mean = torch.std_mean(images.double(), dim=others, correction=0)
    return mean.float(), std.float()


def stratified_split(labels: Numbers, share: float = TEST_SHARE) -> tuple[Numbers, Numbers]:
    """Draw the positions of the training and the test examples.

    Those of scikit-learn's ``train_test_split`` with ``stratify=labels``, to the bit (``StratifiedShuffleSplit``): each
    class gives its share, rounded, and which classes are rounded up is drawn where shares are equally near.

    Args:
        labels: Shape ``[N]``, ``0..classes - 1``.
        share: Of the test examples, rounded up.
    """
    draw = np.random.RandomState(SPLIT_SEED)
    held_out = math.ceil(share * len(labels))
    counts = np.bincount(labels)
    train_counts = _shares(counts, len(labels) - held_out, draw)
    test_counts = _shares(counts - train_counts, held_out, draw)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    shuffled = [positions[draw.permutation(len(positions))] for positions in members]
    train = [positions[:kept] for positions, kept in zip(shuffled, train_counts, strict=True)]
    ends = zip(shuffled, train_counts, test_counts, strict=True)
    test = [positions[kept : kept + given] for positions, kept, given in ends]
    return draw.permutation(np.concatenate(train)), draw.permutation(np.concatenate(test))


def _shares(counts: Numbers, total: int, draw: np.random.RandomState) -> Numbers:
    """Divide a total in proportion to counts, in whole numbers: largest remainders first, equal ones by lot."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    remainders = exact - shares
    missing = int(total - shares.sum())
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        equal = np.flatnonzero(remainders == remainder)
        chosen = draw.choice(equal, size=min(len(equal), missing), replace=False)
        shares[chosen] += 1
        missing -= len(chosen)
    return np.asarray(shares, dtype=np.int64)


def _file(name: str) -> Path:
    places = (Path(entry, "sklearn", "datasets", "data", name) for entry in sys.path)
    return next(filter(Path.is_file, places), Path("sklearn", "datasets", "data", name))


def _table(name: str) -> Dataset:
    path = _file(f"{name}.csv")
    _, _, *class_names = path.read_text(encoding="utf-8").splitlines()[0].split(",")
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    return _split(name, table[:, :-1], table[:, -1], tuple(class_names))


def _split(name: str, values: Numbers, labels: Numbers, class_names: tuple[str, ...], padding: int = 4) -> Dataset:
    images, targets = torch.from_numpy(values.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
    train, test = map(torch.from_numpy, stratified_split(targets.numpy()))
    mean, std = standardisation(images[train])
    return Dataset(
        name=name,
        train_images=images[train],
        train_labels=targets[train],
        test_images=images[test],
        test_labels=targets[test],
        class_names=class_names,
        mean=mean,
        std=std,
        padding=padding,
    )
