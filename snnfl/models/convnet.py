"""The ConvNet of the membership-inference paper."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from snnfl.config import ModelConfig
from snnfl.models.blocks import convolution_block, linear_block, pool
from snnfl.models.registry import image_shape, register


@register("convnet")
def convnet(config: ModelConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """ConvNet: ``conv 32 - pool - conv 64 - pool - 1000 - classes``, kernels 3x3 with padding 1.

    Table I of the paper gives the widths and its authors' code (AyanaMoshruba/Neuromorphic_Privacy) the kernels; here
    the pools average by default, since a maximum of spike trains isn't the spike train of the maximum.

    Parameters for 10 classes without batch normalisation: 3,165,826 (1x28x28), 4,126,402 (3x32x32).
    Source: Moshruba et al., "On the privacy-preserving properties of spiking neural networks with unique surrogate
    gradients and quantization levels", Table I.
    """
    channels, height, width = image_shape(config, input_shape, smallest=4)
    norm, bias, groups = config.batch_norm, config.conv_bias, config.group_norm
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            **convolution_block(1, channels, 32, norm=norm, bias=bias, groups=groups),
            pool1=pool(config, 2),
            **convolution_block(2, 32, 64, norm=norm, bias=bias, groups=groups),
            pool2=pool(config, 2),
            flatten=nn.Flatten(),
            **linear_block(3, 64 * (height // 4) * (width // 4), 1000),
            fc4=nn.Linear(1000, classes),
        )
    )
