"""MOON's projection head, for any model that ends in a linear layer."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from snnfl.config import ConfigError

WIDTH = 256
"""Of the representation that is compared (Li et al., CVPR 2021, section 4.1)."""


def with_projection_head(model: nn.Module, name: str) -> nn.Module:
    """Put two linear layers with a ReLU in between before the output layer: ``features - features - 256 - classes``.

    The sizes are those of the authors' code (``ModelFedCon``). The second layer is linear, so in a spiking network it
    and the output layer act on spikes as one.

    Args:
        model: ``nn.Sequential`` that ends in a linear layer; its other layers keep their names.
        name: Of the model, for the error.

    Raises:
        ConfigError: If it ends in something else.
    """
    layers = OrderedDict(model.named_children())
    last = next(reversed(layers), "")
    output = layers.pop(last, None)
    if not isinstance(model, nn.Sequential) or not isinstance(output, nn.Linear):
        raise ConfigError(
            f"model.projection_head=true: model.name={name} is no nn.Sequential that ends in a linear layer; set "
            "false, or make it one"
        )
    head = {
        "projection1": nn.Linear(output.in_features, output.in_features),
        "relu_projection": nn.ReLU(),
        "projection2": nn.Linear(output.in_features, WIDTH),
        last: nn.Linear(WIDTH, output.out_features),
    }
    return nn.Sequential(OrderedDict(**layers, **head))
