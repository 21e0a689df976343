"""Folders of a user's own files, one for each class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from snnfl.config import ConfigError, DataConfig
from snnfl.data.dataset import DataNotFoundError
from snnfl.data.embedded import stratified_split

SPLITS = ("test", "train")


@dataclass(frozen=True)
class Files:
    """Recordings, a file each, in the order of their classes and names.

    Attributes:
        paths: Of all files.
        labels: ``int64`` of shape ``[files]``.
        class_names: One per label.
        users: ``int64`` of shape ``[files]``, where they are known.
        train: Positions of the training files.
        test: Of the others.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    class_names: tuple[str, ...]
    users: Tensor | None
    train: Tensor
    test: Tensor


def own_place(root: Path, config: DataConfig) -> Path:
    """Return the folder or file that a user names; below the root, for a node reads nothing else that a server names.

    Raises:
        ConfigError: If none is named, or one elsewhere.
        DataNotFoundError: If it isn't there.
    """
    if config.folder is None:
        raise ConfigError(f"data.folder=null: data.source={config.source} reads your own; name it, below {root}")
    relative = Path(config.folder)
    if relative.is_absolute() or ".." in relative.parts:
        raise ConfigError(f"data.folder={config.folder}: expected a path below data.root; set data.root to its parent")
    if not (root / relative).exists():
        raise DataNotFoundError(f"data.folder={config.folder}: {root / relative} is not there (data.root={root})")
    return root / relative


def find_files(folder: Path, ending: str, config: DataConfig) -> Files:
    """Find the files of each class, and whose they are.

    ``<class>/<user>/<file>`` names the users. Of ``<class>/<file>`` each file name's part before the first ``_`` does,
    if all have one and one of these parts is in two classes. A folder that holds ``train`` and ``test`` alone has the
    classes in each; else a fifth of the files is for testing, the same share of each class, and never a part of a file.

    Args:
        folder: Holds a folder for each class; those whose names begin with ``.`` or ``_`` are left out.
        ending: Of the files that count, in small letters.
        config: For errors.

    Raises:
        ConfigError: If there are no two classes, or one is empty.
    """
    splits = SPLITS if tuple(path.name for path in _folders(folder)) == SPLITS else ("",)
    classes = [path.name for path in _folders(folder / splits[-1])]
    if len(classes) < 2:
        raise ConfigError(
            f"data.folder={config.folder}: expected a folder for each class, two or more, found {classes}"
        )
    paths, labels, places = [], [], []
    for split in splits:
        if unknown := {path.name for path in _folders(folder / split)} - set(classes):
            raise ConfigError(f"data.folder={config.folder}: test/{min(unknown)} has no training files")
        for label, name in enumerate(classes):
            some = sorted(path for path in (folder / split / name).rglob("*") if path.suffix.lower() == ending)
            if not some and split != "test":
                raise ConfigError(f"data.folder={config.folder}: {Path(split, name)} has no file that ends in {ending}")
            paths += some
            labels += [label] * len(some)
            places += [path.relative_to(folder / split / name) for path in some]
    if len(splits) == 1:
        train, test = (np.sort(part) for part in stratified_split(np.array(labels)))
    else:
        testing = np.array([path.relative_to(folder).parts[0] == "test" for path in paths])
        train, test = np.flatnonzero(~testing), np.flatnonzero(testing)
    return Files(
        paths=tuple(paths),
        labels=torch.tensor(labels),
        class_names=tuple(classes),
        users=_users(places, labels),
        train=torch.from_numpy(train),
        test=torch.from_numpy(test),
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")


def _users(places: list[Path], labels: list[int]) -> Tensor | None:
    if all(len(place.parts) > 1 for place in places):
        return numbered([place.parts[0] for place in places])
    names = [place.name.partition("_")[0] for place in places]
    pairs = set(zip(names, labels, strict=True))
    if all("_" in place.name for place in places) and len(pairs) > len(set(names)):
        return numbered(names)
    return None


def numbered(names: ArrayLike) -> Tensor:
    """Return numbers in the place of names, in the order of the names."""
    return torch.from_numpy(np.unique(np.asarray(names), return_inverse=True)[1])
