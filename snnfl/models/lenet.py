"""LeNet-5 (LeCun et al. 1998)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from snnfl.config import ModelConfig
from snnfl.models.blocks import convolution_block, linear_block, pool
from snnfl.models.registry import image_shape, register


@register("lenet5")
def lenet5(config: ModelConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """LeNet-5 with ReLU: ``conv 6 - pool - conv 16 - pool - 120 - 84 - classes``.

    LeCun's kernels are 5x5 without padding, on 32x32 pixels; smaller images are padded by 2, as he padded the 28x28 of
    MNIST. Below 12x12 pixels (``digits`` has 8x8) nothing would be left for the second pooling, so there both kernels
    are 3x3 with padding 1.

    Parameters for 10 classes without batch normalisation: 61,706 (1x28x28), 62,006 (3x32x32), 19,754 (1x8x8).
    Source: LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998.
    """
    channels, height, width = image_shape(config, input_shape, smallest=4)
    side = min(height, width)
    kernel, first, second = (3, 1, 1) if side < 12 else (5, 2 if side < 32 else 0, 0)

    def left(length: int) -> int:
        pooled = (length + 2 * first - kernel + 1) // 2
        return (pooled + 2 * second - kernel + 1) // 2

    norm, bias, groups = config.batch_norm, config.conv_bias, config.group_norm
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            **convolution_block(1, channels, 6, kernel=kernel, padding=first, norm=norm, bias=bias, groups=groups),
            pool1=pool(config, 2),
            **convolution_block(2, 6, 16, kernel=kernel, padding=second, norm=norm, bias=bias, groups=groups),
            pool2=pool(config, 2),
            flatten=nn.Flatten(),
            **linear_block(3, 16 * left(height) * left(width), 120),
            **linear_block(4, 120, 84),
            fc5=nn.Linear(84, classes),
        )
    )
