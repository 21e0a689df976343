"""Quantised uploads: what of an update changes in weights travels as codes of few bits."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from snnfl.quantisation import pack, stochastic, unpack
from snnfl.updates.arrays import ArraySpec
from snnfl.updates.format import UpdateFormat

CODES, SCALES = "upload/codes", "upload/scales"
"""Names of the two arrays that stand for all that is quantised."""


class Packing:
    """How updates of a format travel in few bits per weight.

    ``c = stochastic((w - w_sent) + e)`` and ``e' = (w - w_sent) + e - s c``: what rounding leaves out is kept by the
    client and added to its next update (error feedback: Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019).
    All codes are packed into one array of bytes, with a float32 scale for each array of weights. The server reads
    ``w_sent + s c``, in the format of the update, and nobody behind it needs to know.

    Quantised is what clients train and may have any value. Running statistics, learned leaks, thresholds and ranges
    travel as they are, and of a spiking network its biases and batch normalisation, too: by the latter the server
    recovers the weights.

    Args:
        format: Of the updates.
        bits: Of a code: 2, 4 or 8.

    Attributes:
        bits: As given.
        names: The ANN's arrays that are quantised.
        specs: What travels, by name.
    """

    def __init__(self, format: UpdateFormat, bits: int) -> None:
        self.format, self.bits = format, bits
        self.names = format.weight_names
        self.shapes = {name: format.sent_specs[name].shape for name in self.names}
        self.count = sum(map(math.prod, self.shapes.values()))
        self.specs: dict[str, ArraySpec] = {
            CODES: ArraySpec(shape=(-(-self.count * bits // 8),), values="bytes"),
            SCALES: ArraySpec(shape=(len(self.names),), values="non-negative"),
            **{name: spec for name, spec in format.specs.items() if name not in self.names},
        }

    def encode(
        self,
        update: Mapping[str, Tensor],
        sent: Mapping[str, Tensor],
        left_out: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what travels, and what rounding leaves out.

        Args:
            update: In the format.
            sent: What the server had sent.
            left_out: By earlier roundings of this client; empty before any.
            generator: Draws the roundings.
        """
        state, codes, scales, left = self.format.decode(update, sent, biases=False), [], [], dict[str, Tensor]()
        for name in self.names:
            change = state[name] - sent[name]
            change = change + left_out[name] if name in left_out else change
            code, scale = stochastic(change, self.bits, generator)
            codes.append(code.flatten())
            scales.append(scale)
            left[name] = change - scale * code
        packed = {CODES: pack(torch.cat(codes), self.bits), SCALES: torch.stack(scales)}
        return packed | {name: update[name] for name in self.specs if name in update}, left

    def decode(self, packed: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the update in its format.

        Args:
            packed: What travelled, of the shapes of :attr:`specs`.
            sent: What the server had sent.

        Raises:
            ValueError: For bytes that no client sends.
        """
        codes = unpack(packed[CODES], self.bits, self.count)
        state, start = dict[str, Tensor](), 0
        for name, scale in zip(self.names, packed[SCALES], strict=True):
            end = start + math.prod(self.shapes[name])
            state[name] = sent[name] + scale * codes[start:end].view(self.shapes[name])
            start = end
        rest = {name: packed[name] for name in self.specs if name not in (CODES, SCALES)}
        made = self.format.rebuilt(rest, state)
        return {name: made[name] for name in self.format.specs}

    def steps(self, packed: Mapping[str, Tensor]) -> dict[str, float]:
        """Return by how much neighbouring codes differ in each quantised array of the ANN."""
        return dict(zip(self.names, packed[SCALES].tolist(), strict=True))
