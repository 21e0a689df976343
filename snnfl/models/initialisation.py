"""Weights from an explicit generator, where PyTorch's constructors would draw from the global random state."""

from __future__ import annotations

import math

import torch
from torch import nn

_DRAWN = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)
_NORMALISED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.SyncBatchNorm)


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of a model in place, from the distributions of PyTorch's own constructors.

    Convolution and linear weights and biases are ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``: that is Kaiming's uniform
    distribution with ``a = sqrt(5)`` (He et al. 2015, with PyTorch's constant, and what PyTorch takes for the fan-in of
    a transposed convolution). Batch and group normalisation start as the
    identity: gamma 1, beta 0, mean 0, variance 1. What is frozen (``requires_grad=False``) is a constant of the
    architecture and stays as it is.

    Args:
        model: Its modules are visited in the order of their definition, which fixes who gets which draw.
        generator: On the device of the model.
    """
    for module in model.modules():
        if isinstance(module, _NORMALISED):
            module.reset_parameters()
        elif isinstance(module, _DRAWN):
            if module.weight.requires_grad:
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            if module.bias is not None and module.bias.requires_grad:
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def materialise(model: nn.Module, generator: torch.Generator) -> None:
    """Give a model that was built on the meta device its memory and its weights, on the CPU.

    Args:
        model: Constants (frozen weights, buffers) must have been created with ``device="cpu"``; they keep their values.
        generator: As in :func:`initialise`.

    Raises:
        TypeError: If the model has a tensor that would be left without a value.
    """
    for name, module in model.named_modules():
        for kind, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            known = isinstance(module, _NORMALISED) or (isinstance(module, _DRAWN) and tensor.requires_grad)
            if tensor.is_meta and not known:
                raise TypeError(
                    f"{name}.{kind} of a {type(module).__name__} has no initialisation: create a constant with "
                    'device="cpu", or extend snnfl/models/initialisation.py'
                )
    constants = {name: tensor.clone() for name, tensor in model.state_dict().items() if not tensor.is_meta}
    for module in model.modules():  # `to_empty` would import SymPy for it: half a second of CPU
        for name, parameter in list(module.named_parameters(recurse=False)):
            memory = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(memory, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    model.load_state_dict(constants, strict=False)
    initialise(model, generator)
