"""What an update counts: one weight in the average of the ANN and in that of the spiking networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from snnfl.config import ConfigError, ConversionConfig, compose
from snnfl.updates import Converted
from strategies import bases
from strategies.combinations import build_checked, network_rule
from strategies.population import Population
from strategies.spiking import Spiking
from strategies.update import Update

METRICS = frozenset({"num-examples", "loss", "accuracy", "seconds-train"})
EXAMPLES = [10, 30, 25]
USERS = "fedadagrad, fedadam, fedavg, fedavgm, fedbn, fedlec, fednova, fedprox, fedyogi, moon, multikrum"


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("name", ["fedavg", "fedprox", "moon", "fedlec"])
def test_both_averages_of_an_s_run_weigh_alike(
    federation: Any, update_reply: Callable[..., Message], scripted: Any, name: str, weighting: str
) -> None:
    config = compose(None, [f"strategy.name={name}", "data.clients=3", f"strategy.weighting={weighting}"])
    strategy = Spiking(
        build_checked(config),
        Converted(federation.graph, federation.state, ConversionConfig()),
        metrics=METRICS,
        weighing=bases.weighing(config),
        **network_rule(config),
    )
    grid = Population(scripted(range(3), lambda message: message), partitions={n: n for n in range(3)})
    strategy.configure_train(1, federation.without_biases(), ConfigRecord(), grid)
    trained = [federation.trained(n) for n in range(3)]
    replies = [update_reply(trained[n][1], n, num_examples=EXAMPLES[n]) for n in range(3)]
    arrays, _ = strategy.aggregate_train(1, replies)
    shares = [1 / 3] * 3 if weighting == "uniform" else [count / 65 for count in EXAMPLES]
    for found, of in ((strategy.network.parameters, 1), (arrays, 0)):
        for key, array in found.items():
            mean = sum(share * each[of][key].double() for share, each in zip(shares, trained, strict=True))
            np.testing.assert_allclose(array.numpy(), mean, rtol=1e-4, atol=1e-5, err_msg=key)
    assert [update.examples for update in strategy.report.updates] == EXAMPLES  # as the metrics count them


@pytest.mark.parametrize("name", bases.names())
def test_a_weighting_that_has_no_effect_is_refused(name: str) -> None:
    config = compose(None, [f"strategy.name={name}", "strategy.weighting=uniform", "strategy.spiking=false"])
    if name in USERS.split(", "):
        assert bases.weighing(config)(Update(arrays={}, metrics={"num-examples": 7})) == 1
        return
    message = f"^strategy.weighting=uniform: strategy.name={name} doesn't use it, only {USERS}; set examples$"
    with pytest.raises(ConfigError, match=message):
        build_checked(config)


def test_q_fedavg_counts_a_client_by_a_power_of_its_loss() -> None:
    weigh = bases.weighing(compose(None, ["strategy.name=qfedavg", "strategy.q=2"]))
    assert weigh(Update(arrays={}, metrics={"num-examples": 7, "received-loss": 3.0})) == pytest.approx(9)
    assert weigh(Update(arrays={}, metrics={"num-examples": 7, "received-loss": 0.0})) > 0
    assert bases.weighing(compose(None, ["strategy.name=qfedavg", "strategy.q=100"]))(
        Update(arrays={}, metrics={"num-examples": 7, "received-loss": 1e12})
    ) == float("inf")
