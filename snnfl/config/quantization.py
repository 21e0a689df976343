"""How many bits what a client trains, and what it uploads, are written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snnfl.config.declaration import answers_nearest, option


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """Training that knows of quantisation, and quantised uploads: two things, of which either does without the other.

    In training a quantiser stands in every forward pass, and gradients go through it to weights that are float32
    (docs/quantisation.md). An upload is rounded once, when it leaves.
    """

    weights: Literal[0, 2, 4, 8] = option(
        0, doc="bits of all weights of linear layers and convolutions in every forward pass; 0: off"
    )
    per_channel: bool = option(False, doc="weights: a scale per output channel, rather than one per layer")
    activations: Literal[0, 2, 4, 8] = option(0, doc="bits of what ReLUs put out; 0: off")
    potentials: Literal[0, 2, 4, 8] = option(
        0, doc="bits of membrane potentials of networks trained as spiking ones; 0: off"
    )
    clip: float | None = option(
        None,
        above=0.0,
        doc="largest activation, null: learned; and q of potentials from -q to 1.2 q thresholds, null: 1.5",
    )
    uploads: Literal[0, 2, 4, 8] = option(
        0, doc="bits of what a client's update changes in each weight, with error feedback; 0: float32"
    )
