"""Differential privacy: Flower's wrappers with the configured parameters, noise from the seed, and hostile norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg

from snnfl.config import compose
from snnfl.updates import ArraySpec
from strategies.guarded import Guarded
from strategies.population import Population
from strategies.privacy import WRAPPERS, private
from strategies.update import UpdateSpec

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
    bits: list[float] | None = None,
) -> np.ndarray:
    """Send ones, receive the updates, return what the guarded strategy makes of them.

    ``bits`` are what the clients of client-side adaptive clipping say: whether they clipped.
    """
    said = bits if isinstance(strategy, WRAPPERS["client_adaptive"]) else None
    spec = SPEC if said is None else replace(SPEC, metrics=SPEC.metrics | {"norm_bit"})
    guarded = Guarded(strategy, spec, seed=seed)
    grid = Population(scripted(range(CLIENTS), lambda message: message), partitions={n: n for n in range(CLIENTS)})
    guarded.configure_train(server_round, ArrayRecord({"w": torch.ones(1000)}), ConfigRecord(), grid)
    replies = [update_reply({"w": update}, n) for n, update in enumerate(updates)]
    for reply, bit in zip(replies, said or (), strict=said is not None):
        reply.content["metrics"]["norm_bit"] = bit
    result, _ = guarded.aggregate_train(server_round, replies)
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


@pytest.mark.parametrize("initial", [0.01, 100.0])
@pytest.mark.parametrize("clipping", ["server_adaptive", "client_adaptive"])
def test_the_bound_finds_the_quantile(
    update_reply: Callable[..., Message], scripted: Callable[..., Any], clipping: str, initial: float
) -> None:
    """Flower's own bound runs away from it: all are clipped, it shrinks, and still all are clipped."""
    strategy = wrapped(
        clipping,
        "privacy.noise_multiplier=0",
        "privacy.clip_norm_lr=1",
        "privacy.target_clipped_quantile=0.5",
        f"privacy.clipping_norm={initial}",
    )
    norms = [1.0, 2.0, 4.0, 8.0]
    updates = [torch.ones(1000) + norm * torch.eye(1000)[0] for norm in norms]
    for t in range(1, 41):
        bits = [float(norm > strategy.clipping_norm) for norm in norms]
        aggregate(strategy, updates, update_reply, scripted, server_round=t, bits=bits)
    assert 2 / np.exp(0.25) < strategy.clipping_norm < 4 * np.exp(0.25)  # half of them is clipped, or one step from it


@pytest.mark.parametrize("clipping", ["server_adaptive", "client_adaptive"])
def test_the_noise_fits_the_bound_that_updates_were_clipped_to(
    update_reply: Callable[..., Message], scripted: Callable[..., Any], clipping: str
) -> None:
    overrides = ("privacy.noise_multiplier=0.3", "privacy.clip_norm_lr=5", "privacy.clipped_count_stddev=0.2")
    strategy = wrapped(clipping, *overrides, "privacy.clipping_norm=2")
    updates = [torch.ones(1000)] * CLIENTS  # nobody is clipped, so the next bound is far smaller
    found = aggregate(strategy, updates, update_reply, scripted, bits=[0.0] * CLIENTS)
    assert strategy.clipping_norm < 0.5
    assert (found - 1).std() == pytest.approx(strategy.noise_multiplier * 2 / CLIENTS, rel=0.1)
