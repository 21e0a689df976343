"""The CNN of pfl-research's CIFAR-10 benchmark (Granqvist et al. 2024)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from snnfl.config import ModelConfig
from snnfl.models.registry import image_shape, register


@register("cnn")
def cnn(config: ModelConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two convolutions, max pooling and two linear layers: ``conv 32 - conv 64 - pool - 128 - classes``.

    Kernels are 3x3 without padding; there is no batch normalisation. 1,626,442 parameters for 3x32x32 and 10 classes.
    Source: Granqvist et al., "pfl-research: simulation framework for accelerating research in private federated
    learning", NeurIPS 2024 (Datasets and Benchmarks).
    """
    channels, height, width = image_shape(config, input_shape, smallest=6)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(channels, 32, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc3=nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128),
            relu3=nn.ReLU(),
            fc4=nn.Linear(128, classes),
        )
    )
