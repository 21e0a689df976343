"""Networks as functions of explicit arrays, for attackers to differentiate twice."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

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
    attends = any(isinstance(module, nn.MultiheadAttention) for module in template.modules())

    def network(arrays: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        given = {name: array for name, array in arrays.items() if name in names}
        if missing := sorted(names - given.keys()):
            raise ThreatModelError(f"needs {missing[0]}, which the attacker neither has nor guesses")
        with sdpa_kernel(SDPBackend.MATH) if attends else nullcontext():  # fused attention has one derivative alone
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


def relu_behind(model: nn.Module, layer: str, input_shape: Sequence[int]) -> bool:
    """Tell whether what a layer returns goes into a ReLU first, be it a module or a function in ``forward``.

    Args:
        model: On the meta device: it is called once, on a batch of two that nobody computes.
        layer: Name of a module that it calls once.
        input_shape: Of one image.
    """
    template = copy.deepcopy(model).to("meta").eval()
    with _FirstUse() as uses, torch.no_grad():
        template.get_submodule(layer).register_forward_hook(lambda module, given, made: uses.watch(made))
        try:
            template(torch.zeros(2, *input_shape, device="meta"))
        except Exception:  # of somebody else's code, on a device that it may not know
            return False
    return uses.calls == 1 and uses.first in RELUS


def rows_of(model: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Return how many rows of its inputs each linear layer is given for one image, by name: of one in time its steps.

    Args:
        model: On the meta device: it is called once, on a batch of two that nobody computes.
        input_shape: Of one image.

    Returns:
        Of the layers that it calls; none of a model that doesn't run there.
    """
    template, rows = copy.deepcopy(model).to("meta").eval(), dict[str, int]()

    def counted(name: str) -> Callable[..., None]:
        def count(layer: nn.Linear, given: tuple[Tensor, ...]) -> None:
            rows[name] = rows.get(name, 0) + given[0].numel() // layer.in_features // 2

        return count

    for name, layer in template.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(counted(name))
    try:
        with torch.no_grad():
            template(torch.zeros(2, *input_shape, device="meta"))
    except Exception:  # of somebody else's code, on a device that it may not know
        return {}
    return rows


RELUS = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)


class _FirstUse(TorchFunctionMode):
    """Notes the first function that is called with an array."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: Tensor | None = None
        self.calls = 0
        self.first: Callable[..., Any] | None = None

    def watch(self, array: Tensor) -> None:
        """Watch this array."""
        self.watched, self.calls, self.first = array, self.calls + 1, None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function; note it if it is the first one with the watched array."""
        if self.first is None and self.watched is not None and any(each is self.watched for each in args):
            self.first = func
        return func(*args, **(kwargs or {}))


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
