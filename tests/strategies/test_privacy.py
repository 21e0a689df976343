"""Differential privacy: Flower's wrappers with the configured parameters, noise from the seed, and hostile norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg

from snnfl.config import compose
from strategies.cohort import Cohort
from strategies.guarded import Guarded
from strategies.privacy import WRAPPERS, private
from strategies.update import ArraySpec, UpdateSpec

SPEC = UpdateSpec(
    arrays={"w": ArraySpec(shape=(1000,))}, metrics=frozenset({"num-examples", "loss", "accuracy", "seconds-train"})
)
CLIENTS = 4


def wrapped(clipping: str, *overrides: str) -> Any:
    base = FedAvg(min_train_nodes=1, min_available_nodes=1)
    return private(base, compose(None, [f"privacy.clipping={clipping}", *overrides]), CLIENTS)


def aggregate(
    strategy: Any,
    updates: list[torch.Tensor],
    update_reply: Any,
    scripted: Any,
    *,
    seed: int = 0,
    server_round: int = 1,
) -> np.ndarray:
    """Send ones, receive the updates, return what the guarded strategy makes of them."""
    guarded = Guarded(strategy, SPEC, seed=seed)
    grid = Cohort(scripted(range(CLIENTS), lambda message: message), partitions={n: n for n in range(CLIENTS)})
    guarded.configure_train(server_round, ArrayRecord({"w": torch.ones(1000)}), ConfigRecord(), grid)
    result, _ = guarded.aggregate_train(
        server_round, [update_reply({"w": update}, n) for n, update in enumerate(updates)]
    )
    return result["w"].numpy()


def test_without_clipping_nothing_is_wrapped() -> None:
    assert type(wrapped("none")) is FedAvg


@pytest.mark.parametrize("clipping", WRAPPERS)
def test_parameters(clipping: str) -> None:
    chosen = ["privacy.noise_multiplier=0.3", "privacy.clipping_norm=0.7"]
    adaptive = ["privacy.target_clipped_quantile=0.4", "privacy.clip_norm_lr=0.1", "privacy.clipped_count_stddev=2"]
    strategy = wrapped(clipping, *chosen, *(adaptive if clipping.endswith("adaptive") else []))
    assert type(strategy) is WRAPPERS[clipping]
    assert isinstance(strategy.strategy, FedAvg)
    assert (strategy.clipping_norm, strategy.num_sampled_clients) == (0.7, CLIENTS)
    if clipping.endswith("fixed"):
        assert strategy.noise_multiplier == 0.3
        return
    assert (strategy.target_clipped_quantile, strategy.clip_norm_lr) == (0.4, 0.1)
    assert strategy.clipped_count_stddev == 2
    # Part of the noise budget goes into the count (Andrew et al. 2021, section 3.1).
    assert strategy.noise_multiplier == pytest.approx((0.3**-2 - (2 * 2) ** -2) ** -0.5)


@pytest.mark.parametrize("clipping", ["server_fixed", "server_adaptive"])
def test_updates_are_clipped_to_the_norm(
    update_reply: Callable[..., Message], scripted: Callable[..., Any], clipping: str
) -> None:
    far, near = torch.ones(1000), torch.ones(1000)
    far[0], near[1] = 101.0, 1.5
    found = aggregate(
        wrapped(clipping, "privacy.noise_multiplier=0", "privacy.clipping_norm=2"),
        [far, near, near, near],
        update_reply,
        scripted,
    )
    np.testing.assert_allclose(found[:3], [1 + 2 / 4, 1 + 3 * 0.5 / 4, 1], rtol=1e-6)


@pytest.mark.parametrize("clipping", ["server_fixed", "client_fixed"])
def test_noise_has_the_promised_deviation_and_is_a_function_of_seed_and_round(
    update_reply: Callable[..., Message], scripted: Callable[..., Any], clipping: str
) -> None:
    def noisy(seed: int, server_round: int) -> np.ndarray:
        np.random.random()
        strategy = wrapped(clipping, "privacy.noise_multiplier=3", "privacy.clipping_norm=2")
        updates = [torch.ones(1000)] * CLIENTS
        return aggregate(strategy, updates, update_reply, scripted, seed=seed, server_round=server_round)

    first = noisy(0, 1)
    assert (first - 1).std() == pytest.approx(3 * 2 / CLIENTS, rel=0.1)
    np.testing.assert_array_equal(noisy(0, 1), first)
    assert not np.array_equal(noisy(0, 2), first)
    assert not np.array_equal(noisy(1, 1), first)


@pytest.mark.parametrize("clipping", ["server_fixed", "server_adaptive"])
def test_a_client_that_sends_nothing_new_does_not_end_the_run(
    update_reply: Callable[..., Message], scripted: Callable[..., Any], clipping: str
) -> None:
    # Flower divides by the norm of the update, here zero.
    strategy = wrapped(clipping, "privacy.noise_multiplier=0")
    found = aggregate(strategy, [torch.ones(1000)] * CLIENTS, update_reply, scripted)
    np.testing.assert_array_equal(found, np.ones(1000))


def test_the_bound_adapts_towards_the_quantile(
    update_reply: Callable[..., Message], scripted: Callable[..., Any]
) -> None:
    strategy = wrapped("server_adaptive", "privacy.noise_multiplier=0", "privacy.clip_norm_lr=0.5")
    aggregate(strategy, [torch.zeros(1000)] * CLIENTS, update_reply, scripted)  # all are clipped, half should be
    assert strategy.clipping_norm == pytest.approx(np.exp(-0.5 * (1 - 0.5)))
