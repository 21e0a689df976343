"""Data sets, their partitions among clients, and batches of them."""

from snnfl.data import (  # importing them registers their sources
    audio,
    embedded,
    folders,
    neuromorphic,
    nmnist,
    own,
    own_arrays,
    own_pictures,
    published,
    series,
)
from snnfl.data.augmentation import augment
from snnfl.data.dataset import DataKind, DataNotFoundError, Dataset
from snnfl.data.loaders import batches, calibration_batch, epoch_orders, laid_out, test_batches, training_batches
from snnfl.data.partitions import label_counts, partition
from snnfl.data.published import fetch
from snnfl.data.sources import check_source, data_root, load, names, register

__all__ = [
    "DataKind",
    "DataNotFoundError",
    "Dataset",
    "audio",
    "augment",
    "batches",
    "calibration_batch",
    "check_source",
    "data_root",
    "embedded",
    "epoch_orders",
    "fetch",
    "folders",
    "label_counts",
    "laid_out",
    "load",
    "names",
    "neuromorphic",
    "nmnist",
    "own",
    "own_arrays",
    "own_pictures",
    "partition",
    "published",
    "register",
    "series",
    "test_batches",
    "training_batches",
]
