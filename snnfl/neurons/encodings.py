"""How samples become input of spiking networks over time.

===========  ===================================================  ==============================================
name         at step ``t`` of ``T``                               samples
===========  ===================================================  ==============================================
``direct``   the sample itself, as a constant current             pictures, vectors; of sequences each frame
``poisson``  ``sign(x)`` with probability ``min(|x|, 1)``         any; draws from the generator that is given
``latency``  1 at step ``round((1 - x') (T - 1))``, once          pictures, vectors; ``x'``: scaled to 0..1 by sample
``delta``    ``+1`` or ``-1`` where a value moved by ``threshold``  sequences
===========  ===================================================  ==============================================

``poisson`` is PrivateSNN's (Kim et al. 2022, and its code): samples are normalised, so they have signs. A value that is
constant in time has one step, ``[1, N, ...]``, which layers repeat where time matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from snnfl.registry import Registry

Encode: TypeAlias = Callable[[Tensor, int, torch.Generator | None], Tensor]
"""``(samples, steps, generator) -> [T, N, ...]``: samples are ``[N, ...]``, or ``[T, N, ...]`` of sequences."""


@dataclass(frozen=True)
class Encoding:
    """A way to encode samples.

    Attributes:
        encode: Its formula.
        random: Whether it draws from the generator.
        takes: What it encodes: samples without time, sequences, or both.
    """

    encode: Encode
    random: bool
    takes: tuple[str, ...]


ENCODINGS = Registry[Encoding]("encoding", "model.encoding")


def register(
    name: str, *, random: bool = False, takes: tuple[str, ...] = ("samples", "sequences")
) -> Callable[[Encode], Encode]:
    """Make the decorated function the encoding ``name``.

    Args:
        name: Not taken yet.
        random: Whether it draws from the generator that it gets.
        takes: ``"samples"`` (``[N, ...]``), ``"sequences"`` (``[T, N, ...]``), or both.

    Raises:
        ValueError: If the name is taken.
    """

    def add(encode: Encode) -> Encode:
        ENCODINGS.add(name, Encoding(encode, random, takes), home=encode.__module__)
        return encode

    return add


@register("direct")
def direct(samples: Tensor, steps: int, generator: torch.Generator | None = None) -> Tensor:
    """Return samples as one step, ``[1, N, ...]``, which is constant in time; sequences ``[T, N, ...]`` as they are."""
    return samples


@register("poisson", random=True)
def poisson(samples: Tensor, steps: int, generator: torch.Generator | None) -> Tensor:
    """Return ``sign(x) 1[r < |x|]`` with a uniform ``r`` for each value and step.

    Args:
        samples: Shape ``[T or 1, N, ...]``; their magnitudes are probabilities, those above 1 count as 1.
        steps: ``T``, if the samples have one step.
        generator: Draws; on the samples' device.

    Returns:
        Spikes of either sign, ``[T, N, ...]``; no gradient flows through them.
    """
    shape = (steps if len(samples) == 1 else len(samples), *samples.shape[1:])
    draws = torch.rand(shape, generator=generator, dtype=samples.dtype, device=samples.device)
    return (draws < samples.abs()) * samples.sign()


@register("latency", takes=("samples",))
def latency(samples: Tensor, steps: int, generator: torch.Generator | None = None) -> Tensor:
    """Return one spike for each value, the earlier the larger it is within its sample.

    Args:
        samples: Shape ``[1, N, ...]``.
        steps: ``T``.
        generator: Not used.

    Returns:
        Spikes ``[T, N, ...]``: at step 0 for a sample's largest value, at ``T - 1`` for its smallest.

    Raises:
        ValueError: If the samples have several steps.
    """
    if len(samples) != 1:
        raise ValueError(f"latency: expected samples without time, found {len(samples)} steps; take direct or poisson")
    flat = samples[0].flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    scaled = ((flat - low) / (high - low).clamp_min(torch.finfo(flat.dtype).tiny)).view(samples.shape[1:])
    when = torch.round((1 - scaled) * (steps - 1))
    clock = torch.arange(steps, device=samples.device).view(-1, *[1] * when.dim())
    return (clock == when).to(samples.dtype)


def delta(threshold: float) -> Encode:
    """Return the encoding of what a sequence's values change.

    Args:
        threshold: Change of a value between two steps that makes a spike.
    """

    def encode(samples: Tensor, steps: int, generator: torch.Generator | None = None) -> Tensor:
        change = torch.diff(samples, dim=0, prepend=torch.zeros_like(samples[:1]))
        return (change >= threshold).to(samples.dtype) - (change <= -threshold).to(samples.dtype)

    return encode


register("delta", takes=("sequences",))(delta(0.1))
