"""The layers that the models share."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from snnfl.config import ConfigError, ModelConfig


def convolution_block(
    index: int,
    inputs: int,
    outputs: int,
    *,
    kernel: int = 3,
    padding: int = 1,
    stride: int = 1,
    norm: bool,
    bias: bool,
    groups: int = 0,
) -> dict[str, nn.Module]:
    """Return convolution, normalisation and ReLU, under the names ``conv1``, ``norm1`` and ``relu1``.

    Args:
        index: Number in the names.
        inputs: Channels in.
        outputs: Channels out.
        kernel: Side of the kernel.
        padding: Zeros on each side.
        stride: Step of the convolution.
        norm: Whether batch normalisation follows the convolution.
        bias: Whether a convolution that batch normalisation follows has a bias; one without always has.
        groups: Of channels that group normalisation (Wu and He 2018) takes together in its place; 0 for none.

    Raises:
        ConfigError: If groups don't divide the channels.
    """
    if groups and outputs % groups:
        raise ConfigError(f"model.group_norm={groups}: doesn't divide the {outputs} channels of conv{index}")
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=bias or not norm)
    block: dict[str, nn.Module] = {f"conv{index}": convolution}
    if norm:
        block[f"norm{index}"] = nn.BatchNorm2d(outputs)
    elif groups:
        block[f"norm{index}"] = nn.GroupNorm(groups, outputs)
    block[f"relu{index}"] = nn.ReLU()
    return block


def linear_block(index: int, inputs: int, outputs: int, *, norm: bool = False) -> dict[str, nn.Module]:
    """Return a linear layer, batch normalisation and ReLU, under the names ``fc1``, ``norm1`` and ``relu1``."""
    block: dict[str, nn.Module] = {f"fc{index}": nn.Linear(inputs, outputs)}
    if norm:
        block[f"norm{index}"] = nn.BatchNorm1d(outputs)
    block[f"relu{index}"] = nn.ReLU()
    return block


def pool(config: ModelConfig, size: int | tuple[int, int]) -> nn.Module:
    """Return the pooling that a configuration asks for, of windows side by side."""
    return nn.MaxPool2d(size) if config.pooling == "max" else nn.AvgPool2d(size)


class BasicBlock(nn.Module):
    """Residual block: ``relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))``, kernels 3x3.

    The shortcut is the identity where the shapes agree, else a 1x1 convolution with batch normalisation (option B of
    He et al. 2016). Option A pads with zero channels, which is no layer that a spiking network could have.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        stride: Of the first convolution and of the shortcut.
        bias: Whether the convolutions have a bias.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=bias)
            self.shortcut = nn.Sequential(OrderedDict(conv=convolution, norm=nn.BatchNorm2d(outputs)))
        self.relu2 = nn.ReLU()

    @property
    def norms_added(self) -> tuple[nn.Module, ...]:
        """The batch normalisations whose outputs are added."""
        return (self.norm2,) if self.shortcut is None else (self.norm2, self.shortcut.get_submodule("norm"))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, inputs, H, W]`` to ``[batch, outputs, ceil(H/stride), ceil(W/stride)]``."""
        residual = x if self.shortcut is None else self.shortcut(x)
        out: Tensor = self.relu1(self.norm1(self.conv1(x)))
        out = self.relu2(self.norm2(self.conv2(out)) + residual)
        return out
