"""A recording checked against the run that it claims to be of: whoever wrote it, attacks get sound arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.recording import (
    RECEIVED,
    RECORDING,
    SECRET,
    SENT,
    TRUTH,
    Received,
    RecordingError,
    client_folder,
    read_recording,
    read_truth,
)
from snnfl.conversion.folding import NORM_FIELDS
from snnfl.protocol import EXAMPLES
from snnfl.workspace import Workspace

Shapes = Mapping[str, tuple[int, ...]]


def read_checked(work: Workspace, folder: Path, rounds: frozenset[int] = frozenset()) -> Iterator[Received]:
    """Read a recording as :func:`~snnfl.auditing.recording.read_recording`, and check what it holds.

    A checksum tells damage, not malice: a file can be made that has a right one and wrong arrays.

    Raises:
        RecordingError: Naming the file and what is wrong in it.
    """
    sent, received = sent_shapes(work), received_shapes(work)
    for each in read_recording(folder, rounds):
        path = client_folder(folder / RECORDING, each.server_round, each.partition)
        _check(path.parent / SENT, each.exchange.sent, sent)
        _check(path / RECEIVED, each.exchange.received, received)
        claimed = each.metrics.get(EXAMPLES) if isinstance(each.metrics, dict) else None
        most = len(work.dataset.train_labels)
        if not isinstance(claimed, int | float) or not math.isfinite(claimed) or not 1 <= claimed <= most:
            raise RecordingError(f"{path / RECEIVED}: {EXAMPLES} is {claimed!r}; expected 1 to {most}")
        yield each


def read_checked_truth(work: Workspace, folder: Path, server_round: int, partition: int) -> GroundTruth | None:
    """Read what a client told as :func:`~snnfl.auditing.recording.read_truth`, and check that it fits the run.

    Raises:
        RecordingError: Naming the file and what is wrong in it.
    """
    truth = read_truth(folder, server_round, partition)
    if truth is None:
        return None
    path = client_folder(folder / TRUTH, server_round, partition) / SECRET
    shape, classes = work.dataset.input_shape, work.dataset.classes
    if truth.labels.dtype != torch.int64 or ((truth.labels < 0) | (truth.labels >= classes)).any():
        raise RecordingError(f"{path}: expected labels of {classes} classes as int64")
    if len(truth.images) and (tuple(truth.images.shape[1:]) != shape or truth.images.dtype != torch.float32):
        found = f"{truth.images.dtype} {list(truth.images.shape)}"
        raise RecordingError(f"{path}: the images are {found}; expected float32 of shape {list(shape)} each")
    for biases in (truth.biases, truth.trained_biases):
        shapes = {name: tuple(work.initial_state[name].shape) for name in work.biases}
        if biases:
            _check(path, biases, shapes)
    return truth


def sent_shapes(work: Workspace) -> Shapes:
    """Return what the server of a run sends: the ANN's arrays, in an S-run without biases unless it sends them back."""
    strategy = work.config.strategy
    private = work.biases if strategy.spiking and not strategy.bias_back else ()
    return {name: tuple(array.shape) for name, array in work.initial_state.items() if name not in private}


def received_shapes(work: Workspace) -> Shapes:
    """Return what a client of a run sends back."""
    state, config = work.initial_state, work.config.conversion
    if not work.config.strategy.spiking:
        return {name: tuple(array.shape) for name, array in state.items()}
    shapes: dict[str, tuple[int, ...]] = {}
    weights = {f"{node.name}.weight": node.outputs_first(state[f"{node.name}.weight"]) for node in work.graph.affines}
    for node in work.graph.affines:
        weight = weights[f"{node.name}.weight"]
        shapes |= {f"{node.name}.weight": tuple(weight.shape), f"{node.name}.bias": (len(weight),)}
        shapes |= {f"{node.norm}.{field}": (len(weight),) for field in NORM_FIELDS if node.norm is not None}
    for spike in work.graph.spikes:
        per_channel, potentials = config.thresholds == "channel_mmse", config.calibration.endswith("potential")
        in_time = config.calibration == "time_bias"
        channels = work.graph.channels(spike.name, weights) if per_channel or potentials or in_time else 1
        shapes[f"{spike.name}.threshold"] = (channels if per_channel else 1,)
        if potentials:
            shapes[f"{spike.name}.potential"] = (channels,)
        if in_time:
            shapes[f"{spike.name}.time_bias"] = (config.calibration_length, channels)
    return shapes


def _check(path: Path, arrays: Mapping[str, Tensor], shapes: Shapes) -> None:
    if wrong := sorted(arrays.keys() ^ shapes.keys()):
        what = "lacks" if wrong[0] in shapes else "holds a surplus"
        raise RecordingError(f"{path}: {what} {wrong[0]!r}; it isn't of the run beside it")
    for name, array in arrays.items():
        if tuple(array.shape) != shapes[name] or array.dtype != torch.float32:
            found = f"{array.dtype} {list(array.shape)}"
            raise RecordingError(f"{path}: {name!r} is {found}; expected float32 {list(shapes[name])}")
        low = 0.0 if name.endswith((".var", "running_var", ".threshold")) else -math.inf
        zero = name.endswith(".threshold") and (array == 0).any()
        if not array.isfinite().all() or (array < low).any() or zero:
            raise RecordingError(f"{path}: {name!r} holds values that no update may have")
