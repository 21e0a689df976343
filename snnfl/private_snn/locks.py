"""What encryption can do beside the paper's, so that a thief's ordinary network is worth less.

=====================  ==========================================================================================
``threshold_spread``   each channel's threshold is multiplied by ``2^u``, ``u`` uniform in ``[-s, s]``
``lowest_leak``        each channel has a leak of its own, uniform between that and 1
``relu_penalty``       training also makes the copied ReLU network wrong
``bits``               weights take few levels while they are trained, and in what is published
=====================  ==========================================================================================

The first two leave weights as they are, and break the network; training with spikes then mends it, by weights that are
right for these neurons. A spiking network of few steps is ``publishing.steps``, and one leak for all
``publishing.leak``. How much each is worth: ``docs/private-snn.md``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnfl.config import EncryptionConfig
from snnfl.private_snn.network import PublishedNetwork
from snnfl.quantisation import symmetric
from snnfl.spiking.graph import Parameters
from snnfl.spiking.values import hollow, value_shadows

SMALLEST = 1e-6
"""Probability below which a copy isn't made more wrong."""


def with_own_neurons(
    network: PublishedNetwork, config: EncryptionConfig, generator: torch.Generator
) -> PublishedNetwork:
    """Give each channel's neurons a threshold and a leak of their own; the same network where no option asks for it.

    Args:
        network: Before encryption.
        config: ``threshold_spread`` and ``lowest_leak``.
        generator: Draws both, layer after layer.
    """
    found = dict(network.parameters)
    like = next(iter(found.values()))
    shapes = value_shadows(network.graph, found, hollow((1, *network.input_shape), like))
    for node in network.graph.spikes:
        threshold, leak = found[f"{node.name}.threshold"], found[f"{node.name}.leak"]
        draws = torch.rand(2, shapes[node.name].shape[1], generator=generator).to(threshold)
        if config.threshold_spread:
            found[f"{node.name}.threshold"] = threshold * 2 ** ((2 * draws[0] - 1) * config.threshold_spread)
        if config.lowest_leak is not None:
            found[f"{node.name}.leak"] = leak * (config.lowest_leak + (1 - config.lowest_leak) * draws[1])
    return network.holding(found)


def rounded(parameters: Parameters, config: EncryptionConfig) -> dict[str, Tensor]:
    """Return parameters whose weights take ``2^bits - 1`` levels, with gradients as if they didn't.

    Args:
        parameters: Of a published network.
        config: ``bits``; ``None`` leaves all as it is.
    """
    if config.bits is None:
        return dict(parameters)
    bits = config.bits
    return {name: symmetric(each, bits) if name.endswith(".weight") else each for name, each in parameters.items()}


def wrongness(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``-log(1 - p_y)`` as a mean over images: zero where the copied ReLU network never says the class ``y``.

    Unlike a negative cross-entropy it has a minimum, and no gradient where the copy is wrong already.

    Args:
        logits: Of the ReLU network with the published weights, ``[N, classes]``.
        labels: Soft labels, of which the likeliest class counts, ``[N, classes]``.
    """
    right = logits.softmax(1).gather(1, labels.argmax(1, keepdim=True))
    return -torch.log1p(-right.clamp_max(1 - SMALLEST)).mean()
