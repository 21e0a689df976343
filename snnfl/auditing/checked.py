"""A recording checked against the run that it claims to be of: whoever wrote it, attacks get sound arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.recording import (
    RECEIVED,
    RECORDING,
    SENT,
    TRUTH,
    Received,
    RecordingError,
    client_folder,
    read_recording,
    read_truth,
    truth_path,
)
from snnfl.protocol import EXAMPLES
from snnfl.threat import Exchange
from snnfl.training import private_biases
from snnfl.training.local import MAXIMUM_VALUE
from snnfl.updates import CODES, ArraySpec, Packing, ann_specs
from snnfl.workspace import Workspace


def read_checked(work: Workspace, folder: Path, rounds: frozenset[int] = frozenset()) -> Iterator[Received]:
    """Read a recording as :func:`~snnfl.auditing.recording.read_recording`, and check what it holds.

    A checksum tells damage, not malice: a file can be made that has a right one and wrong arrays.

    Raises:
        RecordingError: Naming the file and what is wrong in it.
    """
    sent, packing = work.format.sent_specs, work.packing
    received = work.format.specs if packing is None else packing.specs
    for each in read_recording(folder, rounds):
        path = client_folder(folder / RECORDING, each.server_round, each.partition)
        check_arrays(path.parent / SENT, each.exchange.sent, sent)
        check_arrays(path / RECEIVED, each.exchange.received, received)
        claimed = each.metrics.get(EXAMPLES) if isinstance(each.metrics, dict) else None
        most = len(work.dataset.train_labels) or MAXIMUM_VALUE  # nobody knows how many nodes have of their own
        if not isinstance(claimed, int | float) or not math.isfinite(claimed) or not 1 <= claimed <= most:
            raise RecordingError(f"{path / RECEIVED}: {EXAMPLES} is {claimed!r}; expected 1 to {most:g}")
        yield each if packing is None else replace(each, exchange=_unpacked(packing, path / RECEIVED, each.exchange))


def _unpacked(packing: Packing, path: Path, exchange: Exchange) -> Exchange:
    """Return a packed exchange as the server reads it."""
    try:
        arrays = packing.decode(exchange.received, exchange.sent)
    except ValueError as error:
        raise RecordingError(f"{path}: {CODES!r}: {error}") from None
    check_arrays(path, arrays, packing.format.specs)
    return replace(exchange, received=arrays, rounding=packing.steps(exchange.received))


def read_checked_truth(work: Workspace, folder: Path, server_round: int, partition: int) -> GroundTruth | None:
    """Read what a client told as :func:`~snnfl.auditing.recording.read_truth`, and check that it fits the run.

    Raises:
        RecordingError: Naming the file and what is wrong in it.
    """
    truth = read_truth(folder / TRUTH, server_round, partition)
    if truth is None:
        return None
    path = truth_path(folder / TRUTH, server_round, partition)
    check_truth(path, truth, work.dataset.input_shape, work.dataset.classes)
    for biases in (truth.biases, truth.trained_biases):
        if biases:
            check_arrays(
                path, biases, ann_specs({name: work.initial_state[name] for name in private_biases(work.model)})
            )
    return truth


def check_truth(path: Path, truth: GroundTruth, shape: tuple[int, ...], classes: int) -> None:
    """Check that images and labels are such as a federation has.

    Args:
        path: Of the file, for the error.
        truth: What it holds.
        shape: Of an image.
        classes: Number of labels.

    Raises:
        RecordingError: Naming the file and what is wrong in it.
    """
    if truth.labels.dtype != torch.int64 or ((truth.labels < 0) | (truth.labels >= classes)).any():
        raise RecordingError(f"{path}: expected labels of {classes} classes as int64")
    if len(truth.images) and (tuple(truth.images.shape[1:]) != shape or truth.images.dtype != torch.float32):
        found = f"{truth.images.dtype} {list(truth.images.shape)}"
        raise RecordingError(f"{path}: the images are {found}; expected float32 of shape {list(shape)} each")
    if not bool(((truth.images >= 0) & (truth.images <= 1)).all()):  # neither is true of NaN
        raise RecordingError(f"{path}: the images hold values beyond 0 to 1; expected pixels")


def check_arrays(path: Path, arrays: Mapping[str, Tensor], specs: Mapping[str, ArraySpec]) -> None:
    """Check that arrays are those of a run.

    Args:
        path: Of the file, for the error.
        arrays: What it holds.
        specs: What the run has.

    Raises:
        RecordingError: Naming the file and the first array that isn't.
    """
    if wrong := sorted(arrays.keys() ^ specs.keys()):
        what = "lacks" if wrong[0] in specs else "holds a surplus"
        raise RecordingError(f"{path}: {what} {wrong[0]!r}; it isn't of the run beside it")
    for name, array in arrays.items():
        if (mistake := specs[name].mistake(array)) is not None:
            raise RecordingError(f"{path}: {name!r}: {mistake}")
