"""Tiny ImageNet, read from a folder in its official layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from snnfl.config import ConfigError
from snnfl.data.by_hand import BY_HAND, missing
from snnfl.data.dataset import Dataset
from snnfl.data.sources import register

SIDE = 64


@register("tiny_imagenet")
def tiny_imagenet(root: Path) -> Dataset:
    """Read 100,000 training and 10,000 validation pictures of 64x64 pixels (Le and Yang 2015).

    The labels of the official test split were never published, so the validation split is the test split here.
    Classes are numbered in the order of their WordNet ids, pictures come in the order of their file names; the mean
    and the standard deviation are ImageNet's.
    """
    folder = root / BY_HAND["tiny_imagenet"].folder
    if not (folder / "wnids.txt").is_file():
        raise missing("tiny_imagenet", root, "wnids.txt")
    classes = sorted(row[0] for row in _rows(folder / "wnids.txt"))
    words = {row[0]: row[1].split(",")[0] for row in _rows(folder / "words.txt", columns=2)}
    train = [_training_files(folder / "train" / wnid / "images") for wnid in classes]
    annotations = sorted(row[:2] for row in _rows(folder / "val" / "val_annotations.txt", columns=2))
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    unknown = [wnid for _, wnid in annotations if wnid not in numbers]
    if unknown:
        raise _damaged(f"val/val_annotations.txt names {unknown[0]}, which wnids.txt doesn't")
    return Dataset(
        name="tiny_imagenet",
        train_images=_pictures([path for paths in train for path in paths]),
        train_labels=torch.arange(len(classes)).repeat_interleave(torch.tensor([len(paths) for paths in train])),
        test_images=_pictures([folder / "val" / "images" / name for name, _ in annotations]),
        test_labels=torch.tensor([numbers[wnid] for _, wnid in annotations]),
        class_names=tuple(words.get(wnid, wnid) for wnid in classes),
        mean=torch.tensor([0.485, 0.456, 0.406]),
        std=torch.tensor([0.229, 0.224, 0.225]),
        flip=True,
    )


def _rows(path: Path, columns: int = 1) -> list[list[str]]:
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(f"{path} cannot be read ({error})") from None
    if not rows or min(map(len, rows)) < columns:
        raise _damaged(f"{path} doesn't have {columns} tab-separated columns in every line")
    return rows


def _training_files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.JPEG"))
    if not paths:
        raise _damaged(f"{folder} has no pictures (*.JPEG)")
    return paths


def _pictures(paths: Sequence[Path]) -> Tensor:
    pixels = torch.empty(len(paths), 3, SIDE, SIDE, dtype=torch.uint8)
    for target, path in zip(pixels, paths, strict=True):
        try:
            with Image.open(path) as picture:
                array = np.array(picture.convert("RGB"))  # some pictures are grey
        except OSError as error:
            raise _damaged(f"{path} cannot be read ({error})") from None
        if array.shape != (SIDE, SIDE, 3):
            raise _damaged(f"{path} has {array.shape[1]}x{array.shape[0]} pixels, not {SIDE}x{SIDE}")
        target.copy_(torch.from_numpy(array).permute(2, 0, 1))
    return pixels


def _damaged(reason: str) -> ConfigError:
    return ConfigError(f"data.source=tiny_imagenet: {reason}; unpack tiny-imagenet-200.zip anew")
