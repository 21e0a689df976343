"""Options of differential privacy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snnfl.config.declaration import answers_nearest, option


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Differential privacy with an epsilon (docs/differential-privacy.md).

    As in :class:`StrategyConfig`, null is the default, and setting what the mechanism doesn't use is an error.
    """

    mechanism: Literal["none", "central", "distributed", "example", "local"] = option(
        "none",
        doc="who adds noise to what: the server to the sum of clipped updates; clients their shares of it, inside the "
        "masks; clients to each sample's gradient (DP-SGD); clients to their whole update",
    )
    clipping_norm: float | None = option(
        None,
        above=0.0,
        doc="L2 bound of all that a client sends, or of a sample's gradient; of adaptive clipping the first; null: 1",
    )
    noise_multiplier: float | None = option(
        None, low=0.0, doc="deviation of the noise, in units of the clipping norm; null: 1, or that of target_epsilon"
    )
    target_epsilon: float | None = option(
        None, above=0.0, doc="finds the noise with which all rounds spend no more than this; the run stops before more"
    )
    delta: float = option(
        1e-5, above=0.0, high=0.1, doc="probability that the guarantee doesn't hold; well below one over the clients"
    )
    budget: float | None = option(
        None, above=0.0, doc="epsilon that the run, resumed or not, stops before it would exceed; null: target_epsilon"
    )
    target_clipped_quantile: float | None = option(
        None,
        low=0.0,
        high=1.0,
        doc="central: part of the updates that the bound should clip, to which it adapts; null: it is fixed",
    )
    clip_norm_lr: float | None = option(None, above=0.0, doc="adaptive: learning rate of the bound; null: 0.2")
    clipped_count_stddev: float | None = option(
        None, above=0.0, doc="adaptive: noise of the count of clipped updates; null: a 20th of the expected clients"
    )
    canaries: int = option(
        0, low=0, doc="central: made-up clients, half of them left out, by which the server bounds epsilon from below"
    )
    noise_seed: int | None = option(
        None,
        low=0,
        high=2**32 - 1,
        doc="makes noise and cohorts repeatable, and worthless as protection; null: from the system, kept secret",
    )

    @property
    def adaptive(self) -> bool:
        """Whether the bound follows a quantile of the updates' norms."""
        return self.target_clipped_quantile is not None
