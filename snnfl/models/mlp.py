"""The fully connected network of the membership-inference paper."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from snnfl.config import ModelConfig
from snnfl.models.blocks import linear_block
from snnfl.models.registry import register


@register("mlp")
@register("fcnet")
def mlp(config: ModelConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """FCNet, as the paper calls it: ``inputs - 1000 - classes``, for samples of any shape.

    Parameters without batch normalisation: ``1000 (inputs + 1) + 1001 classes``, for example 8,003 on Iris.
    Source: as :func:`snnfl.models.convnet.convnet`, Table I.
    """
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            flatten=nn.Flatten(),
            **linear_block(1, math.prod(input_shape), 1000, norm=config.batch_norm),
            fc2=nn.Linear(1000, classes),
        )
    )
