"""Whether the generative model that an auditor brings along draws images of the kind that are attacked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnfl import rng
from snnfl.config import ConfigError


def check_generative_model(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Check that a generative model draws such images.

    Raises:
        ConfigError: Saying what it draws instead.
    """
    name = f"--generative-model: {type(model).__name__}"
    shape = getattr(model, "latent_shape", None)
    if not isinstance(shape, tuple | list | torch.Size) or not all(
        isinstance(size, int) and size > 0 for size in shape
    ):
        raise ConfigError(f"{name} has no latent_shape, such as (100,): the shape of what it draws an image from")
    try:
        with torch.no_grad():
            drawn = model(torch.randn(2, *shape, generator=rng.generator(0, "latents")))
    except Exception as error:  # of somebody else's code
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{name} fails on latents of shape {[2, *shape]} ({reason})") from None
    if not isinstance(drawn, Tensor) or tuple(drawn.shape) != (2, *input_shape):
        what = list(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
        raise ConfigError(f"{name} draws {what} from two latents; expected images {[2, *input_shape]}")
    if not (float(drawn.min()) >= 0 and float(drawn.max()) <= 1):
        raise ConfigError(
            f"{name} draws values from {float(drawn.min()):g} to {float(drawn.max()):g}; expected pixels of 0..1"
        )
