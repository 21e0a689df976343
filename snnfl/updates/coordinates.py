"""An update as independent numbers, of which any mean is an update again: what differential privacy clips and noises.

What a client sends says some things twice: folded weights hold the batch normalisation that is sent beside them, and
calibrated biases hold its shift. And some numbers have a range: noise would carry a threshold below zero. So an update
has other coordinates: the ANN's arrays; of each bias of its spiking network what these don't explain; and logarithms of
what is positive. All that an update tells is in them, and whatever follows from a mean of them is covered by its noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from snnfl.conversion.folding import fold, unexplained_biases
from snnfl.updates.converted import Converted
from snnfl.updates.format import UpdateFormat

OWN = "spiking "
"""How coordinates begin that are the spiking network's alone."""

SMALLEST, LARGEST = 1e-9, 1e9
"""Of positive numbers, whatever their logarithms say."""


def coordinates(format: UpdateFormat, received: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an update's coordinates by name.

    Args:
        format: Of the update.
        received: A checked update.
        sent: What the server had sent.
    """
    found = {name: _flat(format, name, array) for name, array in format.decode(received, sent).items()}
    if not isinstance(format, Converted):
        return found
    unexplained = unexplained_biases(format.graph, received, biases=format.bias_back)
    rest = {name: received[name] for name in _own_names(format)} | unexplained
    return found | {f"{OWN}{name}": _flat(format, name, array) for name, array in rest.items()}


def update_of(format: UpdateFormat, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the update that has some coordinates: the inverse of :func:`coordinates`."""
    if not isinstance(format, Converted):
        return {name: _curved(format, name, array) for name, array in found.items()}
    state = ann_of(format, found)
    own = {name.removeprefix(OWN): array for name, array in found.items() if name.startswith(OWN)}
    folded = fold(format.graph, state)
    parameters = {name: array + own[name] if name in own else array for name, array in folded.items()}
    rest = {name: _curved(format, name, array) for name, array in own.items() if name not in folded}
    norms = {own: state[ours] for own, ours in format.norm_arrays.items()}
    return {name: {**parameters, **rest, **norms}[name] for name in format.specs}


def ann_of(format: UpdateFormat, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the ANN's arrays of coordinates."""
    return {name: _curved(format, name, array) for name, array in found.items() if not name.startswith(OWN)}


def origin(format: UpdateFormat, sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return coordinates that everybody knows before anything was trained: thresholds of 1, nothing unexplained.

    Args:
        format: Of the update.
        sent: The ANN that the server sends.
    """
    found = {name: _flat(format, name, array) for name, array in sent.items()}
    if not isinstance(format, Converted):
        return found
    return found | {f"{OWN}{name}": torch.zeros(format.specs[name].shape) for name in _own_names(format)}


def in_order(format: UpdateFormat, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return coordinates in the order in which all sides lay them out as a vector, whatever file they came from."""
    names = [*format.sent_specs]
    if isinstance(format, Converted):
        names += [f"{OWN}{name}" for name in _own_names(format)]
    return {name: found[name] for name in names if name in found} | dict(found)


def _own_names(format: Converted) -> list[str]:
    """Return the arrays of the spiking network that the ANN doesn't have: not its weights, nor learned thresholds."""
    known = {f"{node.name}.weight" for node in format.graph.affines} | {*format.graph.learned_thresholds}
    return [name for name in format.network_names if name not in known]


def _flat(format: UpdateFormat, name: str, array: Tensor) -> Tensor:
    return array.clamp(SMALLEST, LARGEST).log() if _range(format, name) == "positive" else array


def _curved(format: UpdateFormat, name: str, array: Tensor) -> Tensor:
    values = _range(format, name)
    if values == "positive":
        return array.clamp(math.log(SMALLEST), math.log(LARGEST)).exp()
    if values == "non-negative":
        return array.clamp(min=0)
    return array.clamp(0, 1) if values == "share" else array


def _range(format: UpdateFormat, name: str) -> str:
    specs = format.specs if name in format.specs else format.sent_specs
    return specs[name].values
