"""Models by name: a builder function with one decorator is a model of ``model.name``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

from snnfl.config import ConfigError, ModelConfig, QuantizationConfig
from snnfl.models.initialisation import materialise
from snnfl.models.projection import with_projection_head
from snnfl.models.quantised import quantise, quantise_neurons
from snnfl.models.spiking import spiking_model
from snnfl.registry import Registry

Builder: TypeAlias = Callable[[ModelConfig, tuple[int, ...], int], nn.Module]
"""``(config, input_shape, classes) -> model``; called on the meta device, so it costs no time and no random draw."""

FULL = QuantizationConfig()
"""Of a model that is built without being told: nothing is quantised."""

MODELS = Registry[Builder]("model", "model.name")


def register(name: str) -> Callable[[Builder], Builder]:
    """Make the decorated builder the model ``name``.

    Raises:
        ValueError: If the name is taken.
    """
    return MODELS.decorator(name)


def names() -> tuple[str, ...]:
    """Return the names of all models, sorted."""
    return MODELS.names()


def check_model(name: str) -> None:
    """Check that a model exists.

    Raises:
        ConfigError: With the nearest known name.
    """
    MODELS.find(name)


def build_model(
    config: ModelConfig,
    *,
    input_shape: tuple[int, ...],
    classes: int,
    generator: torch.Generator,
    sequence: bool = False,
    quantization: QuantizationConfig = FULL,
) -> nn.Module:
    """Build a model on the CPU, in training mode, with weights drawn from a generator.

    Args:
        config: Name and options of the model.
        input_shape: Shape of one sample: ``[channels, height, width]``, or ``[features]`` for ``mlp``.
        classes: Number of outputs.
        generator: CPU generator that every weight is drawn from; the global random state is neither read nor moved.
        sequence: Whether a sample's first axis is time: a spiking network sees one step after the other.
        quantization: Bits of weights, activations and potentials; initial weights are the same for all.

    Returns:
        A module that maps ``[batch, *input_shape]`` to logits ``[batch, classes]``; for ``config.neuron`` other than
        ``relu`` a :class:`~snnfl.models.spiking.SpikingModel` with the same initial weights.

    Raises:
        ConfigError: If the model is unknown, does not fit the input, takes no projection head, or has weights that
            cannot be quantised.

    >>> from snnfl.rng import generator
    >>> model = build_model(ModelConfig(name="mlp"), input_shape=(4,), classes=3, generator=generator(0, "weights"))
    >>> tuple(model(torch.zeros(2, 4)).shape)
    (2, 3)
    """
    builder = MODELS.find(config.name)
    step_shape = input_shape[1:] if sequence and config.neuron != "relu" else input_shape
    with torch.device("meta"):
        model = MODELS.made(config.name, lambda: builder(config, step_shape, classes), nn.Module)
        if config.group_norm:
            _check_group_norm(config, model)
        if config.projection_head:
            model = with_projection_head(model, config.name)
    materialise(model, generator)
    quantise(model, config, quantization)
    if config.neuron == "relu":
        return model
    made = spiking_model(model, config, input_shape=input_shape, sequence=sequence, generator=generator)
    quantise_neurons(made, quantization)
    return made


def image_shape(config: ModelConfig, input_shape: tuple[int, ...], *, smallest: int) -> tuple[int, int, int]:
    """Check that the samples are images of at least ``smallest`` by ``smallest`` pixels.

    Returns:
        ``input_shape`` as ``(channels, height, width)``.

    Raises:
        ConfigError: Naming the model and the shape, and what to do.
    """
    if len(input_shape) != 3:
        raise ConfigError(
            f"model.name={config.name}: expected images [channels, height, width], the samples of data.source have "
            f"the shape {list(input_shape)}; use model.name=mlp"
        )
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise ConfigError(
            f"model.name={config.name}: expected images of at least {smallest}x{smallest} pixels, those of data.source "
            f"have {height}x{width}; use larger images, or a model that takes these, such as model.name=resnet20 or mlp"
        )
    return channels, height, width


def _check_group_norm(config: ModelConfig, model: nn.Module) -> None:
    """Refuse group normalisation where a model has none, or batch normalisation as well."""
    if config.batch_norm:
        raise ConfigError(
            f"model.group_norm={config.group_norm}: is in place of batch normalisation; set model.batch_norm=false"
        )
    if not any(isinstance(module, nn.GroupNorm) for module in model.modules()):
        raise ConfigError(
            f"model.group_norm={config.group_norm}: model.name={config.name} has none; take lenet5 or convnet, "
            "or leave it at 0"
        )
