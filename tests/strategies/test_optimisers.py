"""An optimiser on the server moves weights; what batch normalisation measured is averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import strategy as flower

from snnfl.config import compose
from snnfl.updates import ArraySpec
from strategies import bases
from strategies.guarded import Guarded
from strategies.optimisers import AveragedStatistics
from strategies.population import Population
from strategies.update import UpdateSpec

STEPS = [
    name
    for name in bases.names()
    if isinstance(bases.build_base(compose(None, [f"strategy.name={name}", "data.clients=9"])), AveragedStatistics)
]
FLOWERS: dict[str, Callable[[], Any]] = {
    "fedavgm": lambda: flower.FedAvgM(server_momentum=0.9),
    "fedadam": flower.FedAdam,
    "fedyogi": lambda: flower.FedYogi(eta=0.01),
    "fedadagrad": lambda: flower.FedAdagrad(eta=0.1),
    "qfedavg": lambda: flower.QFedAvg(client_learning_rate=0.1, q=0.1, train_loss_key="received-loss"),
}
SHAPES = {"conv.weight": (3, 2), "norm.running_mean": (3,), "norm.weight": (3,), "norm.running_var": (3,)}
STATISTICS = ("norm.running_mean", "norm.running_var")
EXAMPLES, LOSSES, ROUNDS = [10, 30, 25], [0.5, 2.0, 1.0], 5
METRICS = frozenset({"num-examples", "loss", "accuracy", "seconds-train", "received-loss"})


def arrays(seed: int) -> dict[str, torch.Tensor]:
    """Return arrays whose variances change by orders of magnitude, as in the first rounds of training."""
    draw = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    return values | {"norm.running_var": torch.exp(2 * values["norm.running_var"])}


def weights_alone(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in STATISTICS}


def test_every_optimiser_is_here() -> None:
    assert sorted(FLOWERS) == sorted(STEPS)


@pytest.mark.parametrize(
    ("name", "weighting"),
    [(name, weighting) for name in STEPS for weighting in ("examples", "uniform")[: 1 + bases.find(name).weighs]],
)
def test_statistics_are_averaged_and_weights_move_as_if_there_were_none(
    update_reply: Callable[..., Message], scripted: Callable[..., Any], name: str, weighting: str
) -> None:
    config = compose(None, [f"strategy.name={name}", "data.clients=3", f"strategy.weighting={weighting}"])
    spec = UpdateSpec(arrays={key: ArraySpec(shape=shape) for key, shape in SHAPES.items()}, metrics=METRICS)
    ours = Guarded(bases.build_base(config), spec, seed=0, weighing=bases.weighing(config))
    literal = FLOWERS[name]()
    grid = Population(scripted(range(3), lambda message: message), partitions={n: n for n in range(3)})
    sent, sent_weights = ArrayRecord(arrays(99)), ArrayRecord(weights_alone(arrays(99)))
    for t in range(1, ROUNDS + 1):
        ours.configure_train(t, sent, ConfigRecord(), grid)
        literal.configure_train(t, sent_weights, ConfigRecord(), grid)
        updates = [arrays(10 * t + n) for n in range(3)]
        found, _ = ours.aggregate_train(
            t, [update_reply(u, n, num_examples=EXAMPLES[n], received_loss=LOSSES[n]) for n, u in enumerate(updates)]
        )
        counts = EXAMPLES if weighting == "examples" else [1, 1, 1]
        expected, _ = literal.aggregate_train(
            t,
            [
                update_reply(weights_alone(u), n, num_examples=counts[n], received_loss=LOSSES[n])
                for n, u in enumerate(updates)
            ],
        )
        assert list(found) == list(SHAPES)
        for key, array in expected.items():
            np.testing.assert_allclose(found[key].numpy(), array.numpy(), rtol=1e-5, atol=1e-6, err_msg=key)
        shares = [loss**0.1 for loss in LOSSES] if name == "qfedavg" else counts
        for key in STATISTICS:
            mean = sum(share * u[key].double() for share, u in zip(shares, updates, strict=True)) / sum(shares)
            np.testing.assert_allclose(found[key].numpy(), mean, rtol=1e-5, atol=1e-6, err_msg=key)
        sent, sent_weights = found, ArrayRecord(weights_alone(dict(found)))


@pytest.mark.parametrize("name", STEPS)
def test_without_replies_there_is_no_step(name: str) -> None:
    base = bases.build_base(compose(None, [f"strategy.name={name}", "data.clients=3"]))
    assert base.aggregate_train(1, [])[0] is None
