"""The differential privacy of a run, from its workspace."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from snnfl import rng
from snnfl.config import OWN, ConfigError
from snnfl.training import normalisation
from snnfl.updates import Converted
from snnfl.updates.coordinates import coordinates
from snnfl.workspace import Workspace
from strategies.arrays import tensors_of
from strategies.privacy import Protection, build_protection

IMAGES = 64
"""Of noise, on which a network that has learned nothing is calibrated."""


def protection_of(work: Workspace, arrays: ArrayRecord) -> Protection | None:
    """Build what a run's server needs for differential privacy, if it is to have any.

    Args:
        work: Of the run.
        arrays: What the server sends first.

    Raises:
        ConfigError: If no noise gives the wanted epsilon, the budget is less than a round spends, or the gradient
            of a sample depends on others where each is to be protected.
    """
    if work.config.privacy.mechanism == "example" and normalisation(work.initial_state):
        raise ConfigError(
            f"model.name={work.config.model.name}: has batch normalisation whatever model.batch_norm says, and with "
            "privacy.mechanism=example no gradient would be one sample's; take lenet5, convnet or mlp without it"
        )
    sizes = [] if work.config.data.source == OWN else [len(partition) for partition in work.partitions]
    sent, known = tensors_of(arrays), None
    if isinstance(work.format, Converted) and work.config.privacy.mechanism != "none":
        known = coordinates(work.format, converted_start(work), sent)
    return build_protection(work.config, work.format, sizes=sizes, sent=sent, known=known)


def converted_start(work: Workspace) -> dict[str, Tensor]:
    """Return the update of a client that has trained nothing and calibrates on noise: everybody can make it.

    What clients send differs less from it than from thresholds of 1, so that clipping leaves more of that.
    """
    draw = rng.generator(work.config.run.seed, "noise for the first network")
    images = torch.randn(IMAGES, *work.dataset.input_shape, generator=draw)
    start = work.format.encode(work.initial_state, images.to(work.device))
    return {name: array.cpu() for name, array in start.items()}
