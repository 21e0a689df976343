"""Networks as functions of explicit arrays, for attackers to differentiate twice."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfl.attacks.blocks import in_blocks
from snnfl.attacks.spiking_operations import in_operations
from snnfl.models import SpikingModel
from snnfl.threat import ThreatModelError
from snnfl.training import exchangeable

Arrays: TypeAlias = dict[str, Tensor]

Network: TypeAlias = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""``(arrays by name, inputs [N, ...]) -> logits [N, classes]``: pure, so that ``torch.func`` transforms it."""


def network_of(model: nn.Module, norm_mode: Literal["train", "eval"]) -> Network:
    """Return a model as a function of its arrays; the model isn't changed, its own arrays are never read.

    The function raises :class:`~snnfl.threat.ThreatModelError` where it isn't given one of them.

    Args:
        model: Of one tensor argument. Dropout is switched off.
        norm_mode: In ``"train"`` batch normalisation takes the statistics of the batch that it is given, and keeps no
            running ones; in ``"eval"`` it takes ``running_mean`` and ``running_var`` from the arrays.
    """
    template = copy.deepcopy(model).eval()
    template = in_operations(template) if isinstance(template, SpikingModel) else in_blocks(template)
    if norm_mode == "train":
        template = torch.func.replace_all_batch_norm_modules_(template)
    names = frozenset(exchangeable(template))

    def network(arrays: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        given = {name: array for name, array in arrays.items() if name in names}
        if missing := sorted(names - given.keys()):
            raise ThreatModelError(f"needs {missing[0]}, which the attacker neither has nor guesses")
        logits: Tensor = torch.func.functional_call(template, given, (inputs,), strict=False)
        return logits

    return network


def output_network_of(model: nn.Module, norm_mode: Literal["train", "eval"]) -> Network:
    """Return as :func:`network_of` what a model's last module, its output layer, receives.

    Raises:
        ThreatModelError: If the model is no ``nn.Sequential``, so that nothing says which module is the last.
    """
    if not isinstance(model, nn.Sequential):
        raise ThreatModelError(
            f"{type(model).__name__}: no nn.Sequential, and MOON compares what its last module receives"
        )
    return network_of(model[:-1], norm_mode)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ``-mean_n sum_k targets_nk log softmax(logits_n)_k`` in nats, of shapes ``[N, classes]``."""
    return -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()


def normalised_layers(model: nn.Module) -> bool:
    """Tell whether a model has batch normalisation."""
    return any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.modules())


def last_linear(model: nn.Module) -> str:
    """Name the layer whose outputs are the logits: the last linear one in the order of definition.

    Raises:
        ValueError: If there is none.
    """
    found: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError("the model has no linear layer, so its logits have no weights that tell labels")
    return found[-1]


def classes_of(model: nn.Module) -> int:
    """Count a model's outputs."""
    weight: Tensor = model.get_parameter(f"{last_linear(model)}.weight")
    return len(weight)
