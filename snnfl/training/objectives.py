"""What local training minimises."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.models import SpikingModel
from snnfl.registry import Registry
from snnfl.training.resident import load_arrays

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs of shape ``[batch, *input_shape]`` and labels ``[batch]`` of dtype int64."""

Objective: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``(model, inputs, labels) -> loss``: a scalar, the mean over the batch, that gradients flow through."""

Function: TypeAlias = Callable[[Tensor], Tensor]

Maker: TypeAlias = Callable[[nn.Module, Mapping[str, Any]], Objective]
"""``(model, asked) -> objective``: a model with the received weights, and what the server's message says."""

OBJECTIVES = Registry[Maker]("objective")


def register(name: str) -> Callable[[Maker], Maker]:
    """Let a strategy ask its clients to minimise the decorated objective: ``config["objective"] = NAME``.

    Raises:
        ValueError: If the name is taken.
    """
    return OBJECTIVES.decorator(name)


def cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy ``-mean log softmax(model(inputs))[label]``, in nats.

    Of a spiking model with ``per_step`` it is the mean of the cross-entropies of all time steps (Deng et al., "Temporal
    efficient training of spiking neural network via gradient re-weighting", ICLR 2022, eq. 7).
    """
    if isinstance(model, SpikingModel) and model.per_step:
        return _of_outputs(model, model.currents(inputs), labels)
    return functional.cross_entropy(model(inputs), labels)


def _of_outputs(model: nn.Module, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of an output layer's values; those of a spiking model are read out."""
    if not isinstance(model, SpikingModel):
        return functional.cross_entropy(outputs, labels)
    if not model.per_step:
        return functional.cross_entropy(model.readout(outputs), labels)
    values = model.readout.over_time(outputs)
    return functional.cross_entropy(values.flatten(0, 1), labels.repeat(len(values)))


def proximal(model: nn.Module, mu: float) -> Objective:
    """Return FedProx's objective about the weights that a model has now.

    ``cross-entropy + mu/2 |w - w_t|^2`` over all trainable parameters (Li et al., "Federated optimization in
    heterogeneous networks", MLSys 2020, eq. 2). The running statistics of batch normalisation are no parameters.

    Args:
        model: Holds the received weights ``w_t``, which are copied.
        mu: Weight of the proximal term, at least 0.
    """
    received = [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]

    def objective(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        distances = [(now - then).square().sum() for now, then in zip(trained, received, strict=True)]
        return cross_entropy(model, inputs, labels) + mu / 2 * torch.stack(distances).sum()

    return objective


def model_contrastive(model: nn.Module, previous: Mapping[str, Tensor], *, mu: float, temperature: float) -> Objective:
    """Return MOON's objective about the weights that a model has now, the received ones.

    ``cross-entropy + mu l_con`` with
    ``l_con = -log(exp(sim(z, z_glob)/tau) / (exp(sim(z, z_glob)/tau) + exp(sim(z, z_prev)/tau)))``, where ``z`` is what
    the output layer receives and ``sim`` the cosine (Li et al., "Model-contrastive federated learning", CVPR 2021,
    eq. 3 to 5). The received and the previous model are frozen and in evaluation mode, as in the authors' code. In a
    spiking model ``z`` is the mean over time of what the output layer receives: firing rates. All three models see the
    same encoded samples.

    Args:
        model: ``nn.Sequential`` whose last module is its output layer, or a spiking model of one; holds the received
            weights, which are copied.
        previous: The client's arrays after its last local training, as :func:`~snnfl.training.exchangeable` names them.
        mu: Weight of the contrastive term, at least 0.
        temperature: ``tau``, positive.

    Raises:
        TypeError: If the model is no ``nn.Sequential``.
        ValueError: If the previous arrays are not the model's.
    """
    received, past = _frozen(model), _frozen(model)
    load_arrays(past, previous)
    bodies = [_parts(other)[0] for other in (received, past)]

    def objective(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        body, represent, output = _parts(model)
        inputs = model.encode(inputs) if isinstance(model, SpikingModel) else inputs
        hidden = body(inputs)
        z = represent(hidden)
        with torch.no_grad():
            others = [represent(other(inputs)) for other in bodies]
        similarities = torch.stack([functional.cosine_similarity(z, other, dim=1) for other in others], dim=1)
        contrastive = functional.cross_entropy(similarities / temperature, torch.zeros_like(labels))
        return _of_outputs(model, output(hidden), labels) + mu * contrastive

    return objective


def _frozen(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)


def _parts(model: nn.Module) -> tuple[Function, Function, Function]:
    """Return what comes before the output layer, what represents it, and the output layer."""
    if isinstance(model, SpikingModel):
        return model.parts()
    if not isinstance(model, nn.Sequential):
        raise TypeError(
            f"{type(model).__name__}: MOON compares what the last module receives; build the model as an nn.Sequential"
        )
    return model[:-1], lambda hidden: hidden, model[-1]
