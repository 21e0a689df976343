"""Activations that are trained to become few time steps of a neuron: quantised, clipped, floored and shifted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from snnfl.quantisation.fake import clip_floor_shift

SMALLEST_THRESHOLD = 1e-3
"""Learned thresholds below count as it."""


class QCFS(nn.Module):
    """:func:`~snnfl.quantisation.clip_floor_shift` in the place of a ReLU, with a learned threshold.

    Args:
        levels: ``L``: time steps of the simulation that the network is trained for.
        threshold: What ``V_th`` starts from.
    """

    def __init__(self, levels: int, threshold: float) -> None:
        super().__init__()
        self.levels = levels
        self.threshold = nn.Parameter(torch.tensor([threshold]))

    def forward(self, values: Tensor) -> Tensor:
        """Map values of any shape to ``L + 1`` levels from zero to the threshold."""
        return clip_floor_shift(values, self.levels, self.threshold.clamp_min(SMALLEST_THRESHOLD))

    def extra_repr(self) -> str:
        """Tell the levels."""
        return f"levels={self.levels}"


@torch.no_grad()
def fitting_thresholds(model: nn.Module, images: Tensor, levels: int) -> dict[str, float]:
    """Find thresholds with which quantised activations come nearest to a ReLU network's, layer by layer.

    ``V_th* = argmin mean((relu(a) - q(a))^2)`` over ``V_th = max(a) (1 - 0.01 i)``, ``i = 0 .. 94``: the search of Li
    et al. (2021, section 4.1) with the quantiser of :func:`~snnfl.quantisation.clip_floor_shift`.

    Args:
        model: An ordinary one; it is taken in evaluation mode, and left in its own.
        images: Shape ``[N, ...]``.
        levels: ``L``.

    Returns:
        A threshold by each ReLU's path; 1 for one that no image activates.
    """
    found, hooks, training = dict[str, float](), [], model.training
    for path in _relus(model):

        def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, path: str = path) -> None:
            largest = output.amax()
            tried = [largest * (1 - 0.01 * i) for i in range(95)]
            errors = [(output - clip_floor_shift(output, levels, each[None])).square().mean() for each in tried]
            best = float(tried[int(torch.stack(errors).argmin())]) if largest > 0 else 1.0
            found[path] = best

        hooks.append(model.get_submodule(path).register_forward_hook(look))
    model.eval()(images)
    model.train(training)
    for hook in hooks:
        hook.remove()
    return found


def _relus(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.ReLU)]


@torch.no_grad()
def measure_statistics(model: nn.Module, images: Tensor) -> None:
    """Give the batch normalisations of a model in evaluation mode the statistics of one batch, in place."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def with_qcfs(model: nn.Module, levels: int, thresholds: Mapping[str, float] | None = None) -> nn.Module:
    """Put :class:`QCFS` in the place of a model's ReLUs, in place.

    Args:
        model: An ordinary one.
        levels: ``L``.
        thresholds: What each starts from, by the ReLU's path; ``None``: 1, until others are loaded.

    Returns:
        The model.
    """
    for path in _relus(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, QCFS(levels, 1.0 if thresholds is None else thresholds[path]))
    return model
