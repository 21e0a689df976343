"""What a detector sees of a round: what the server received, and nothing of who sent it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from snnfl.training import is_statistic
from snnfl.updates import UpdateFormat


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundView:
    """The checked updates of one round: plain data, live or from a recording.

    Attributes:
        updates: Received arrays by name, one mapping per client.
        sent: The ANN's arrays that the server had sent; in an S-run without biases. They are the server's own, to be
            read and never written to.
        examples: How many each client claims to have trained on.
        format: Of the updates.
    """

    updates: Sequence[Mapping[str, Tensor]]
    sent: Mapping[str, Tensor]
    examples: Sequence[int]
    format: UpdateFormat

    @cached_property
    def changes(self) -> Tensor:
        """What each client changed in the ANN's weights, ``[clients, parameters]``, float64.

        Of a spiking update these are the recovered weights (SNFL section 4.2). Running statistics don't count.
        """
        names = [name for name in self.sent if not is_statistic(name)]
        return torch.stack([self._change(update, names) for update in self.updates])

    @cached_property
    def layers(self) -> Tensor:
        """Thresholds, ``[clients, layers]``, float64, first layer first; of thresholds per channel their mean."""
        names = self.format.threshold_names
        if not names:
            raise ValueError("these updates hold no thresholds")
        return torch.stack([torch.stack([update[name].double().mean() for name in names]) for update in self.updates])

    def _change(self, update: Mapping[str, Tensor], names: list[str]) -> Tensor:
        state = self.format.decode(update, self.sent)
        return torch.cat([(state[name].double() - self.sent[name].double()).flatten() for name in names])
