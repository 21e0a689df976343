"""What the rounds of a run spend, by its mechanism, and when they would spend too much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from snnfl.batching import batch_count
from snnfl.config import Config, ConfigError
from snnfl.privacy.accounting import Ledger, Release, noise_for
from snnfl.privacy.skellam import SkellamLedger


class Spending:
    """The privacy that a run has spent.

    =========== ======================================================================= ===============================
    mechanism   a round counts as                                                       neighbours differ in
    =========== ======================================================================= ===============================
    central     a Gaussian mechanism, each client drawn with probability ``q``           a client that is there or not
    local       for each client asked one of noise ``z/2``: any update for any other     a client's data, all of them
    example     for each client asked, its optimiser's steps, each sample drawn with     a sample that is there or not
                probability ``batch size / samples``
    =========== ======================================================================= ===============================

    Where clients add the noise, the server knows whom it asked, so that nothing is gained by drawing them: a round
    counts for whoever was asked, and epsilon is that of the client that was asked most often. Of ``example``, the
    client with the fewest samples and the one with the most steps stand for all.

    Where clients add shares of discrete noise within the masks (``distributed``), a round counts as a Skellam mechanism
    (:mod:`snnfl.privacy.skellam`) for whoever was asked, and neighbours differ in a client that sends nothing.

    Args:
        config: Of the run.
        sizes: Training samples of each client.
        length: Of an update's vector.

    Raises:
        ConfigError: If no noise gives the wanted epsilon.
    """

    def __init__(self, config: Config, sizes: Sequence[int], length: int = 1) -> None:
        privacy = config.privacy
        self.config, self.mechanism, self.delta = config, privacy.mechanism, privacy.delta
        self.budget = privacy.target_epsilon if privacy.budget is None else privacy.budget
        self.steps, self.rate = 1, config.strategy.fraction_train
        if self.mechanism == "example":
            batch = config.training.batch_size
            self.steps = config.training.epochs * max(batch_count(size, batch) for size in sizes)
            self.rate = min(1.0, max(batch / size for size in sizes))
        self._rounds, self.length = 0, length
        self._asked: dict[int, int] = {}
        self.noise = self._configured_noise()

    def _configured_noise(self) -> float:
        privacy = self.config.privacy
        if privacy.target_epsilon is None:
            return 1.0 if privacy.noise_multiplier is None else privacy.noise_multiplier
        try:
            return noise_for(privacy.target_epsilon, self.delta, lambda z: self.ledger(self.config.run.rounds, z))
        except ValueError as error:
            raise ConfigError(f"privacy.target_epsilon={privacy.target_epsilon}: {error}; take a larger one") from None

    def ledger(self, rounds: int, noise: float) -> Ledger | SkellamLedger:
        """Return what a member of so many rounds has spent."""
        if self.mechanism == "distributed":
            return SkellamLedger(noise, rounds, self.length)
        ledger = Ledger()
        release = Release(noise / 2) if self.mechanism == "local" else Release(noise, self.rate)
        ledger.add(release, rounds * self.steps)
        return ledger

    def add(self, partitions: Iterable[int]) -> None:
        """Count a round, in which these clients were asked."""
        for partition in partitions:
            self._asked[partition] = self._asked.get(partition, 0) + 1
        self._rounds += 1

    def epsilon(self) -> float:
        """Return what is spent; infinity without noise."""
        return self.ledger(self._counted, self.noise).epsilon(self.delta)

    @property
    def _counted(self) -> int:
        """How many rounds count."""
        return self._rounds if self.mechanism == "central" else max(self._asked.values(), default=0)

    def refusal(self, server_round: int) -> str | None:
        """Say why a further round may not be played, or return ``None``."""
        if self.budget is None:
            return None
        after = self.ledger(self._counted + 1, self.noise).epsilon(self.delta)
        if after <= self.budget:
            return None
        key = "target_epsilon" if self.config.privacy.budget is None else "budget"
        return f"privacy.{key}={self.budget:g}: round {server_round} would spend {_shown(after)}"

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed run goes on with: it may have more rounds, for which other noise would be found."""
        return {"noise": self.noise, "rounds": self._rounds, "asked": dict(self._asked)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the state of an earlier process."""
        self.noise, self._rounds, self._asked = state["noise"], state["rounds"], dict(state["asked"])


def adaptive_noise(noise: float, count_deviation: float) -> float:
    """Return the noise multiplier that is left for updates where a count of noise ``sigma_b`` is released, too.

    ``(z^-2 - (2 sigma_b)^-2)^(-1/2)``: both together spend what the multiplier ``z`` spends (Andrew et al. 2021,
    theorem 1).

    Raises:
        ConfigError: If the count alone spends more.
    """
    if noise == 0:
        return 0.0
    left = noise**-2 - (2 * count_deviation) ** -2
    if left <= 0:
        raise ConfigError(
            f"privacy.noise_multiplier={noise:g}: must be less than twice the noise of the count of clipped updates, "
            f"privacy.clipped_count_stddev={count_deviation:g}; raise that, or lower the multiplier"
        )
    return float(left**-0.5)


def _shown(epsilon: float) -> str:
    return "an epsilon without bound" if math.isinf(epsilon) else f"an epsilon of {epsilon:.4g}"
