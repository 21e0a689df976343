"""Sources that torchvision downloads and reads: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100.

Means and standard deviations are the published ones, in 0..1, per channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnfl.config import ConfigError
from snnfl.data.by_hand import BY_HAND, missing
from snnfl.data.dataset import DataNotFoundError, Dataset
from snnfl.data.sources import SOURCES, check_source, register
from snnfl.registry import OURS
from snnfl.torchvision_guard import guard

_IDX = "{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"


@dataclass(frozen=True, kw_only=True)
class _Published:
    reader: str  # class in torchvision.datasets
    folder: str  # below the root
    archive: str  # what to lay below the root by hand where the network fails
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool


_PUBLISHED = {
    "mnist": _Published(
        reader="MNIST",
        folder="MNIST/raw",
        archive=f"MNIST/raw/{_IDX}",
        mean=(0.1307,),
        std=(0.3081,),
        flip=False,  # a mirrored digit is another sign
    ),
    "fashion_mnist": _Published(
        reader="FashionMNIST",
        folder="FashionMNIST/raw",
        archive=f"FashionMNIST/raw/{_IDX}",
        mean=(0.2860,),
        std=(0.3530,),
        flip=True,
    ),
    "cifar10": _Published(
        reader="CIFAR10",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        flip=True,
    ),
    "cifar100": _Published(
        reader="CIFAR100",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        flip=True,
    ),
}


@register("mnist")
def mnist(root: Path) -> Dataset:
    """Read 70,000 handwritten digits of 28x28 pixels (LeCun et al. 1998)."""
    return _read("mnist", root)


@register("fashion_mnist")
def fashion_mnist(root: Path) -> Dataset:
    """Read 70,000 pictures of clothes of 28x28 pixels (Xiao et al. 2017)."""
    return _read("fashion_mnist", root)


@register("cifar10")
def cifar10(root: Path) -> Dataset:
    """Read 60,000 colour pictures of 32x32 pixels in 10 classes (Krizhevsky 2009)."""
    return _read("cifar10", root)


@register("cifar100")
def cifar100(root: Path) -> Dataset:
    """Read 60,000 colour pictures of 32x32 pixels in 100 fine classes (Krizhevsky 2009)."""
    return _read("cifar100", root)


def fetch(name: str, root: Path) -> Path:
    """Download a data set, unless it is there already.

    Args:
        name: Name of a source.
        root: Folder of downloaded data sets, see :func:`snnfl.data.sources.data_root`.

    Returns:
        The folder that holds the data set.

    Raises:
        ConfigError: If the name is unknown, or there is nothing to fetch because the source needs no download.
        DataNotFoundError: If the download or a file in the folder fails; for one that is laid by hand.
    """
    check_source(name, said=name)
    if name in BY_HAND:
        raise missing(name, root)
    if SOURCES.homes[name].partition(".")[0] not in OURS:
        raise ConfigError(f"{name}: nothing to fetch, a plug-in's data set reads its own files below {root}")
    if name not in _PUBLISHED:
        raise ConfigError(f"{name}: nothing to fetch, it needs no download")
    source = _PUBLISHED[name]
    try:
        _reader(name)(root, train=True, download=True)
    except Exception as error:  # a network's errors are many, and a damaged file makes the reader raise anything
        raise DataNotFoundError(
            f"{name}: cannot be fetched ({_last_line(error)}); where the network fails, lay {root / source.archive} by "
            f"hand, where files are damaged, delete {root / source.folder}, then type: snnfl data fetch {name}"
        ) from None
    return root / source.folder


def _read(name: str, root: Path) -> Dataset:
    source = _PUBLISHED[name]
    folder = root / source.folder
    if not folder.is_dir() or not any(folder.iterdir()):  # a failed download leaves an empty folder
        raise DataNotFoundError(
            f"data.source={name}: {folder} is not there; type: snnfl data fetch {name} "
            f"(or set SNNFL_DATA or data.root to the folder that holds {source.folder})"
        )
    try:
        train, test = (_reader(name)(root, train=split, download=False) for split in (True, False))
    except Exception as error:  # a damaged file makes the reader raise anything
        raise ConfigError(
            f"data.source={name}: {folder} is incomplete or damaged ({_last_line(error)}); "
            f"delete it and type: snnfl data fetch {name}"
        ) from None
    return Dataset(
        name=name,
        train_images=_pixels(train.data),
        train_labels=torch.as_tensor(train.targets),
        test_images=_pixels(test.data),
        test_labels=torch.as_tensor(test.targets),
        class_names=tuple(train.classes),
        mean=torch.tensor(source.mean),
        std=torch.tensor(source.std),
        flip=source.flip,
    )


def _reader(name: str) -> Any:
    guard()
    from torchvision import datasets

    return getattr(datasets, _PUBLISHED[name].reader)


def _pixels(data: Any) -> Tensor:
    """Bring MNIST's tensor ``[N, H, W]`` or CIFAR's array ``[N, H, W, C]`` to ``[N, C, H, W]``."""
    images = torch.as_tensor(data)
    return images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
