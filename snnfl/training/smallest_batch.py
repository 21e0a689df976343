"""What batch normalisation asks of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnfl.training.evaluation import evaluation_mode

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def needs_two(model: nn.Module, sample: Tensor) -> str | None:
    """Name a batch normalisation that cannot train on a batch of one sample, or return ``None``.

    It takes the variance over the batch and, behind a convolution, over the pixels; in a spiking network over the time
    steps, too, of which a current that is constant in time has one. PyTorch refuses to take that of a single value per
    channel: of one sample behind a linear layer, or behind a convolution that leaves one pixel.

    Args:
        model: Run once in evaluation mode; it stays as it is.
        sample: Shape ``[1, *input_shape]``, on the model's device.
    """
    found: list[nn.Module] = []

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == module.num_features:
            found.append(module)

    hooks = [module.register_forward_pre_hook(before) for module in model.modules() if isinstance(module, _NORMS)]
    try:
        with evaluation_mode(model):
            model(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return next((name for name, module in model.named_modules() if module in found), None)
