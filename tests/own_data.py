"""Real digits as data of nodes' own: a folder of pictures, arrays, a saved folder of ``datasets``, a table."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Their order is not that of the alphabet, which would hide a mistake."""

OPTIONS = ["data.source=own", f"data.classes=[{','.join(CLASSES)}]", "data.shape=[1,8,8]"]


@functools.cache
def _digits() -> Any:
    return load_digits()


def pictures(numbers: Iterable[int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return some of the 1,797 digits as ``uint8 [N, 8, 8]``, and their labels."""
    digits, chosen = _digits(), list(numbers)
    return (digits.images[chosen] * 15).astype(np.uint8), digits.target[chosen].astype(np.int64)


def lay_pictures(folder: Path, numbers: Iterable[int]) -> Path:
    """Write a folder with a sub-folder for each class."""
    chosen = list(numbers)
    for number, image, label in zip(chosen, *pictures(chosen), strict=True):
        place = folder / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:04}.png")
    return folder


def lay_arrays(path: Path, numbers: Iterable[int]) -> Path:
    """Write ``x`` and ``y``."""
    images, labels = pictures(numbers)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=images, y=labels)
    return path


def lay_dataset(folder: Path, numbers: Iterable[int]) -> Path:
    """Save a folder of ``datasets``, its classes in another order than the run's."""
    import datasets

    images, labels = pictures(numbers)
    names = sorted(CLASSES)
    columns = {"image": list(map(Image.fromarray, images)), "label": [names.index(CLASSES[label]) for label in labels]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))
    return folder
