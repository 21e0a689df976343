"""Differential privacy of the aggregate: Flower's four wrappers, two flaws of theirs mended, from the configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from snnfl.config import Config, ConfigError
from strategies.flower_internals import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
)


class _AdaptiveClipping(Strategy):
    """What Andrew et al. (2021, algorithm 1) do and Flower's adaptive clipping (1.41) doesn't.

    The bound ``C`` follows a quantile of the updates' norms: ``C' = C exp(eta (c - c*))``, where ``c`` is the part that
    was clipped and ``c*`` the wanted one. Flower has the opposite sign, so that its bound runs away from the quantile,
    to 0 or infinity. And the noise of a round fits the bound that its updates were clipped to; Flower takes the next.
    """

    clipping_norm: float
    clip_norm_lr: float
    target_clipped_quantile: float
    clipped_to: float = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember the round's bound."""
        self.clipped_to = self.clipping_norm
        return super().configure_train(server_round, arrays, config, grid)  # type: ignore[safe-super]

    def _geometric_update(self, clipped_fraction: float) -> None:
        self.clipping_norm *= math.exp(self.clip_norm_lr * (clipped_fraction - self.target_clipped_quantile))

    def _add_noise_to_aggregated_arrays(self, aggregated: ArrayRecord) -> ArrayRecord:
        following, self.clipping_norm = self.clipping_norm, self.clipped_to
        noisy: ArrayRecord = super()._add_noise_to_aggregated_arrays(aggregated)  # type: ignore[misc]
        self.clipping_norm = following
        return noisy


class ServerAdaptiveClipping(_AdaptiveClipping, DifferentialPrivacyServerSideAdaptiveClipping):
    """The server clips, to a bound that follows a quantile of the norms."""


class ClientAdaptiveClipping(_AdaptiveClipping, DifferentialPrivacyClientSideAdaptiveClipping):
    """The clients clip, to a bound that follows a quantile of the norms."""


WRAPPERS: dict[str, Any] = {
    "server_fixed": DifferentialPrivacyServerSideFixedClipping,
    "server_adaptive": ServerAdaptiveClipping,
    "client_fixed": DifferentialPrivacyClientSideFixedClipping,
    "client_adaptive": ClientAdaptiveClipping,
}

_FIXED: dict[str, float | None] = {"noise_multiplier": 1.0, "clipping_norm": 1.0}
_ADAPTIVE = _FIXED | {"target_clipped_quantile": 0.5, "clip_norm_lr": 0.2, "clipped_count_stddev": None}


def privacy_parameters(config: Config) -> dict[str, float | None]:
    """Return the configured mechanism's parameters: what is set, else the defaults.

    Raises:
        ConfigError: If one is set that the mechanism doesn't use.
    """
    privacy, clipping = config.privacy, config.privacy.clipping
    defaults = {} if clipping == "none" else _ADAPTIVE if clipping.endswith("adaptive") else _FIXED
    for name in sorted(_ADAPTIVE.keys() - defaults.keys()):
        if (value := getattr(privacy, name)) is not None:
            users = "adaptive clipping" if name not in _FIXED else "a privacy.clipping other than none"
            raise ConfigError(f"privacy.{name}={value}: privacy.clipping={clipping} doesn't use it, only {users} does")
    given = {name: getattr(privacy, name) for name in defaults}
    return {name: default if given[name] is None else given[name] for name, default in defaults.items()}


def private(base: Strategy, config: Config, sampled: int) -> Strategy:
    """Wrap a strategy as configured: with ``privacy.clipping=none``, not at all.

    Updates are clipped to a norm C, and noise of deviation ``z C / n`` is added to each weight of the aggregate.

    Args:
        base: Aggregates.
        config: Of the run.
        sampled: The number n of clients selected per round.

    Raises:
        ConfigError: If the parameters don't fit the mechanism or each other.
    """
    values, clipping = privacy_parameters(config), config.privacy.clipping
    if clipping == "none":
        return base
    norm = values.pop("clipping_norm")
    # Flower divides by the norm of the update. A client that sends the received weights back makes that zero, which
    # as a NumPy number gives infinity, so that nothing is clipped, and as a Python one would end the run.
    bound = np.float64(norm) if clipping.startswith("server") else norm
    values["clipping_norm" if clipping.endswith("fixed") else "initial_clipping_norm"] = bound
    try:
        wrapped: Strategy = WRAPPERS[clipping](base, num_sampled_clients=sampled, **values)
    except ValueError as error:
        raise ConfigError(
            f"privacy.noise_multiplier={values['noise_multiplier']}: must be less than twice the noise of the count of "
            f"clipped updates, privacy.clipped_count_stddev={values['clipped_count_stddev']} (null: {sampled}/20); "
            "raise that, or lower the multiplier"
        ) from error
    return wrapped
