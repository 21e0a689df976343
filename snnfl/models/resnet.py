"""Two networks that are both called ResNet-20: the SNFL paper's (11.2 million parameters) and He's (0.27 million)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from snnfl.config import ModelConfig
from snnfl.models.blocks import BasicBlock, convolution_block
from snnfl.models.registry import image_shape, register


@register("resnet20_snfl")
def resnet20_snfl(config: ModelConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The SNFL paper's ResNet-20: ``3 convs 64 (/2) - 2x64 - 2x128 /2 - 2x256 /2 - 2x512 /2 - pool - relu - classes``.

    Numbers count blocks of two convolutions. The reference, ``ResNet_Cifar_Modified([2, 2, 2, 2])``, pools with a
    depthwise convolution whose weights are the constant 1/4, and puts a spiking layer behind it. Its 512 x 2 x 2
    weights are among the 11,249,994, so they are here too, frozen; they travel with the others. For other image sizes
    the kernel is the whole last map, so their number changes.

    Parameters for 3x32x32 and 10 classes: 11,249,994; 20 ReLUs (3 + 16 + 1); 187 million multiply-accumulates.
    Source: Li et al., "A free lunch from ANN: towards efficient, accurate spiking neural networks calibration", ICML
    2021, and its code (yhhhli/SNN_Calibration, commit a4615cb), which SNFL section 5.1 builds on.
    """
    channels, height, width = image_shape(config, input_shape, smallest=1)
    bias = config.conv_bias
    window = math.ceil(height / 16), math.ceil(width / 16)
    pool = nn.Conv2d(512, 512, window, groups=512, bias=False)
    mean = torch.full_like(pool.weight, 1 / math.prod(window), device="cpu")
    pool.weight = nn.Parameter(mean, requires_grad=False)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            **convolution_block(1, channels, 64, norm=True, bias=bias),
            **convolution_block(2, 64, 64, norm=True, bias=bias),
            **convolution_block(3, 64, 64, stride=2, norm=True, bias=bias),
            **_stages(64, (64, 128, 256, 512), blocks=2, bias=bias),
            pool=pool,
            relu_pool=nn.ReLU(),
            flatten=nn.Flatten(),
            fc=nn.Linear(512, classes),
        )
    )


@register("resnet20")
def resnet20(config: ModelConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """He's ResNet-20 for CIFAR: ``conv 16 - 3x16 - 3x32 /2 - 3x64 /2 - global pool - classes``.

    Numbers count blocks of two convolutions, with projections where the shape changes (option B).

    Parameters for 3x32x32 and 10 classes: 272,474 (He's option A has 269,722); 19 ReLUs; 41 million
    multiply-accumulates.
    Source: He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2.
    """
    channels, height, width = image_shape(config, input_shape, smallest=1)
    bias = config.conv_bias
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            **convolution_block(1, channels, 16, norm=True, bias=bias),
            **_stages(16, (16, 32, 64), blocks=3, bias=bias),
            pool=nn.AvgPool2d((math.ceil(height / 4), math.ceil(width / 4))),
            flatten=nn.Flatten(),
            fc=nn.Linear(64, classes),
        )
    )


def _stages(inputs: int, widths: Sequence[int], *, blocks: int, bias: bool) -> dict[str, nn.Module]:
    """Return ``stage1``, ``stage2``, ...; the first block of every stage but the first halves the map."""
    stages: dict[str, nn.Module] = {}
    for number, outputs in enumerate(widths, start=1):
        first = BasicBlock(inputs, outputs, stride=1 if number == 1 else 2, bias=bias)
        rest = (BasicBlock(outputs, outputs, stride=1, bias=bias) for _ in range(blocks - 1))
        stages[f"stage{number}"] = nn.Sequential(first, *rest)
        inputs = outputs
    return stages
