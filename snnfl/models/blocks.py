"""The layers that the models share."""

from __future__ import annotations

from torch import nn


def convolution_block(
    index: int, inputs: int, outputs: int, *, kernel: int = 3, padding: int = 1, stride: int = 1, norm: bool, bias: bool
) -> dict[str, nn.Module]:
    """Return convolution, batch normalisation and ReLU, under the names ``conv1``, ``norm1`` and ``relu1``.

    Args:
        index: Number in the names.
        inputs: Channels in.
        outputs: Channels out.
        kernel: Side of the kernel.
        padding: Zeros on each side.
        stride: Step of the convolution.
        norm: Whether batch normalisation follows the convolution.
        bias: Whether a convolution that batch normalisation follows has a bias; one without always has.
    """
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=bias or not norm)
    block: dict[str, nn.Module] = {f"conv{index}": convolution}
    if norm:
        block[f"norm{index}"] = nn.BatchNorm2d(outputs)
    block[f"relu{index}"] = nn.ReLU()
    return block


def linear_block(index: int, inputs: int, outputs: int, *, norm: bool = False) -> dict[str, nn.Module]:
    """Return a linear layer, batch normalisation and ReLU, under the names ``fc1``, ``norm1`` and ``relu1``."""
    block: dict[str, nn.Module] = {f"fc{index}": nn.Linear(inputs, outputs)}
    if norm:
        block[f"norm{index}"] = nn.BatchNorm1d(outputs)
    block[f"relu{index}"] = nn.ReLU()
    return block
