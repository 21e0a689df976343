"""Layers whose weights, and activations, are quantised in every forward pass: same modules, same names."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.config import ConfigError, ModelConfig, QuantizationConfig
from snnfl.models.spiking_layers import SpikingNeurons
from snnfl.models.swapped import swapped
from snnfl.neurons import without_reset
from snnfl.quantisation import QCFS, affine, rectified, symmetric

RANGE = 3.0
"""Largest activation that a learned range starts from: three standard deviations of what batch normalisation makes."""

RANGE_NAME = "range"
"""How the array of a learned range is called in its layer."""


CLIP = 1.5
"""``q`` of potentials that no run chooses: they lie between ``-q`` and ``1.2 q`` thresholds."""


class QuantisedWeight:
    """A layer that computes with :func:`~snnfl.quantisation.symmetric` of its weight, which itself stays float32.

    Attributes:
        bits: Of the weight.
        per_channel: Whether each output channel has a scale of its own.
    """

    bits: int
    per_channel: bool

    def quantised(self, weight: Tensor) -> Tensor:
        """Quantise a weight as the layer does."""
        return symmetric(weight, self.bits, per_channel=self.per_channel)


class QuantisedLinear(QuantisedWeight, nn.Linear):
    """``nn.Linear`` with a quantised weight; the bias stays as it is."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        return functional.linear(input, self.quantised(self.weight), self.bias)


class QuantisedConv2d(QuantisedWeight, nn.Conv2d):
    """``nn.Conv2d`` with a quantised weight; the bias stays as it is."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[N, in, H, W]`` to ``[N, out, H', W']``."""
        outputs: Tensor = self._conv_forward(input, self.quantised(self.weight), self.bias)
        return outputs


class QuantisedReLU(nn.Module):
    """:func:`~snnfl.quantisation.rectified` in the place of a ReLU.

    Args:
        bits: Of an activation.
        largest: Where activations are clipped; ``None`` to learn it from :data:`RANGE`.
    """

    def __init__(self, bits: int, largest: float | None) -> None:
        super().__init__()
        self.bits = bits
        self.range = nn.Parameter(torch.tensor([RANGE])) if largest is None else largest

    def forward(self, values: Tensor) -> Tensor:
        """Map values of any shape to as many levels as the bits tell."""
        return rectified(values, self.bits, self.range)


_OF = {nn.Linear: QuantisedLinear, nn.Conv2d: QuantisedConv2d}


def quantise(model: nn.Module, config: ModelConfig, quantization: QuantizationConfig) -> None:
    """Let all linear layers, convolutions and ReLUs of an ordinary model quantise what a run says, in place.

    Raises:
        ConfigError: If the model has weights, or activations, that nothing here quantises.
    """
    if quantization.weights:
        for name, module in model.named_modules():
            if type(module) in _OF:
                _quantise_weight(module, quantization)
            elif any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
                raise ConfigError(
                    f"quantization.weights={quantization.weights}: {name or 'the model'} of model.name={config.name} "
                    f"is a {type(module).__name__}; only weights of nn.Linear and nn.Conv2d are quantised"
                )
    if quantization.activations:
        paths = [path for path, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.ReLU)]
        if not paths:
            raise ConfigError(
                f"quantization.activations={quantization.activations}: model.name={config.name} has no nn.ReLU; set 0"
            )
        for path in paths:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, QuantisedReLU(quantization.activations, quantization.clip))


def _quantise_weight(layer: nn.Module, quantization: QuantizationConfig) -> None:
    layer.__class__ = _OF[type(layer)]
    layer.bits, layer.per_channel = quantization.weights, quantization.per_channel  # type: ignore[assignment]


def quantise_neurons(model: nn.Module, quantization: QuantizationConfig) -> None:
    """Let the neurons of a spiking model quantise their recurrent weights and their potentials, in place.

    Potentials take, as by snnTorch's ``state_quant``, ``2^b`` levels from ``-q`` to ``1.2 q`` thresholds, ``q`` being
    ``quantization.clip``. Output neurons that don't fire have no bound that a potential could be clipped to, and keep
    theirs.
    """
    q = CLIP if quantization.clip is None else quantization.clip
    for module in [module for module in model.modules() if isinstance(module, SpikingNeurons)]:
        if quantization.weights and module.recurrent is not None:
            _quantise_weight(module.recurrent, quantization)
        if quantization.potentials and module.reset is not without_reset:
            low, high = -q * module.level, 1.2 * q * module.level
            module.store = partial(affine, bits=quantization.potentials, low=low, high=high)


def mute_potentials(quantization: QuantizationConfig) -> bool:
    """Tell whether no neuron can fire, the largest level of its potential, ``1.2 q``, being no more than a threshold.

    >>> mute_potentials(QuantizationConfig(potentials=4, clip=0.83)), mute_potentials(QuantizationConfig(potentials=4))
    (True, False)
    """
    return bool(quantization.potentials) and 1.2 * (quantization.clip or CLIP) <= 1


def full_precision(model: nn.Module) -> AbstractContextManager[None]:
    """Let a model's layers be ordinary ones for a while: how it is built shows, not how weights are rounded."""
    return swapped(model.modules(), {quantised: ordinary for ordinary, quantised in _OF.items()})


def deployed(model: nn.Module, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return arrays of a model with the weights that it computes with in the place of those that it trains."""
    found = dict(arrays)
    for name, module in model.named_modules():
        if isinstance(module, QuantisedWeight) and (weight := f"{name}.weight".removeprefix(".")) in found:
            found[weight] = module.quantised(found[weight])
    return found


def learned_ranges(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the ranges and thresholds that an ordinary model's activations learn, which are positive."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, QuantisedReLU) and isinstance(module.range, nn.Parameter):
            found.append(f"{name}.{RANGE_NAME}".removeprefix("."))
        elif isinstance(module, QCFS):
            found.append(f"{name}.threshold".removeprefix("."))
    return tuple(found)
