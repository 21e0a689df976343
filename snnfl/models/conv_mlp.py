"""A convolution in front of two linear layers: the network that LOKI's server hands out."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from snnfl.config import ModelConfig
from snnfl.models.blocks import convolution_block, linear_block
from snnfl.models.registry import image_shape, register

MAPS, UNITS = 64, 256


@register("conv_mlp")
def conv_mlp(config: ModelConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """``conv 64 - 256 - classes``, with a kernel of 3x3 that keeps the image's size, and without normalisation.

    Nothing is pooled, so that the first linear layer sees each pixel of each map; it holds nearly all of the
    16,781,834 parameters for 3x32x32 and 10 classes. Source: the layers that the malicious server of Zhao et al.,
    "LOKI", IEEE S&P 2024, sets before a network; here nothing is behind them.
    """
    channels, height, width = image_shape(config, input_shape, smallest=1)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            **convolution_block(1, channels, MAPS, norm=False, bias=True),
            flatten=nn.Flatten(),
            **linear_block(2, MAPS * height * width, UNITS),
            fc3=nn.Linear(UNITS, classes),
        )
    )
