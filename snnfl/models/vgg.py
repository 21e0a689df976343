"""VGG-16 with batch normalisation, for small images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from snnfl.config import ModelConfig
from snnfl.models.blocks import convolution_block, pool
from snnfl.models.registry import image_shape, register

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@register("vgg16")
def vgg16(config: ModelConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """VGG-16: ``2x64 - pool - 2x128 - pool - 3x256 - pool - 3x512 - pool - 3x512 - global pool - classes``.

    Five halvings need 32x32 pixels. The last pool takes the whole map that is left (2x2 for 32x32), and one linear
    layer stands for ImageNet's three, as is usual for CIFAR and as in the conversion's reference (Li et al. 2021).

    Parameters for 3x32x32 and 10 classes: 14,724,042, or 14,728,266 with ``conv_bias``.
    Source: Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015, D.
    """
    inputs, height, width = image_shape(config, input_shape, smallest=32)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    index = 0
    for stage, widths in enumerate(_STAGES, start=1):
        for outputs in widths:
            index += 1
            layers.update(convolution_block(index, inputs, outputs, norm=True, bias=config.conv_bias))
            inputs = outputs
        layers[f"pool{stage}"] = pool(config, 2 if stage < len(_STAGES) else (height // 16, width // 16))
    return nn.Sequential(OrderedDict(**layers, flatten=nn.Flatten(), fc=nn.Linear(inputs, classes)))
