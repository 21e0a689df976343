"""Narrow convolutions before a pooling as wide ones of a quarter of the positions, which the CPU's vectors fill.

A convolution of an image's three channels into LeNet's six leaves most of a vector of 16 numbers empty, most of all
where it is differentiated by its inputs: gradient matching, which differentiates twice, spends half its time there.
Blocks of 2x2 pixels taken as channels make it one of 12 into 24, with kernels of 3x3 that hold the 5x5 at the four
positions in a block. ReLU does not mind the order of pixels, and a pooling of 2x2 is each block's mean, so that the
pixels are never put back. (Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?")
"""

from __future__ import annotations

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NARROW = (4, 8)
"""Most input and output channels that run in blocks, as LeNet-5's first layer: with more, vectors are less empty."""


def in_blocks(model: nn.Module) -> nn.Module:
    """Let each narrow convolution that ReLU and a pooling of 2x2 follow in an ``nn.Sequential`` run in blocks.

    The model is changed in place and computes the same, up to rounding, from parameters of the same names.
    """
    sequences = [module for module in model.modules() if isinstance(module, nn.Sequential)]
    for sequence in (each for each in sequences if type(each).forward is nn.Sequential.forward):
        slots = list(sequence.named_children())
        for (first, convolution), (second, relu), (third, pooling) in zip(slots, slots[1:], slots[2:], strict=False):
            if _narrow(convolution) and type(relu) is nn.ReLU and _halves(pooling):
                setattr(sequence, first, _Stage(convolution))
                setattr(sequence, second, nn.Identity())
                setattr(sequence, third, nn.Identity())
    return model


class _Stage(nn.Module):
    """``avg_pool2d(relu(conv2d(x)), 2)``, with the convolution's parameters."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.frame = convolution._reversed_padding_repeated_twice

    def forward(self, inputs: Tensor) -> Tensor:
        """Convolve ``[N, C, H, W]``, rectify and pool."""
        padded = F.pad(inputs, self.frame) if any(self.frame) else inputs
        if any(length % 2 for length in padded.shape[-2:]):
            return F.avg_pool2d(F.relu(F.conv2d(padded, self.weight, self.bias)), 2)
        outputs, channels = self.weight.shape[:2]
        filters = (self.weight.flatten(1) @ _places(self.weight)).view(4 * outputs, 4 * channels, *self._blocks())
        bias = None if self.bias is None else self.bias.repeat_interleave(4)
        blocks = F.relu(F.conv2d(F.pixel_unshuffle(padded, 2), filters, bias)).movedim(1, -1)
        # A product, for its derivative is one, too: what torch.compile writes for a mean's runs number by number.
        mean = torch.eye(outputs, dtype=inputs.dtype, device=inputs.device).repeat_interleave(4, dim=0) / 4
        return (blocks.reshape(-1, len(mean)) @ mean).view(*blocks.shape[:-1], -1).movedim(-1, 1)

    def _blocks(self) -> tuple[int, ...]:
        """Return the height and width of a kernel in blocks."""
        return tuple((length + 1) // 2 for length in self.weight.shape[2:])


def _places(weight: Tensor) -> Tensor:
    """Return where a filter's numbers stand in its four filters of blocks, ``[C h w, 4 * 4C * blocks]``.

    A matrix of zeros and ones: the product puts the numbers there, and the transposed one collects their slopes, where
    padding and cutting takes an operation for each of the four.
    """
    each = torch.eye(weight[0].numel(), dtype=weight.dtype, device=weight.device).view(-1, *weight.shape[1:])
    shifts = [(right, 1 - right, low, 1 - low) for low in (0, 1) for right in (0, 1)]
    return torch.stack([F.pixel_unshuffle(F.pad(each, shift), 2) for shift in shifts], dim=1).flatten(1)


def _narrow(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros":
        return False
    plain = {*module.stride, *module.dilation, module.groups} == {1}
    few = module.in_channels <= NARROW[0] and module.out_channels <= NARROW[1]
    return plain and few and all(length % 2 for length in module.kernel_size)


def _halves(module: nn.Module) -> bool:
    """Tell whether a module is an average pooling of 2x2, edge to edge."""
    if type(module) is not nn.AvgPool2d or module.divisor_override or module.ceil_mode:
        return False
    return all(n in (2, (2, 2)) for n in (module.kernel_size, module.stride)) and module.padding in (0, (0, 0))
