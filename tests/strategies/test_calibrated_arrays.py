"""Initial potentials and biases in time on their way through the server: described, checked and averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from snnfl.config import ConfigError, ConversionConfig
from snnfl.conversion import convert_state
from snnfl.updates import Converted
from strategies.population import Population
from strategies.spiking import Spiking
from strategies.update import UpdateRefused, check_update

EXAMPLES = [10, 30, 25]
IMAGES = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def strategy_of(federation: Any, conversion: ConversionConfig) -> Spiking:
    metrics = frozenset({"num-examples", "loss", "accuracy", "seconds-train"})
    base = FedAvg(min_train_nodes=1, min_available_nodes=1)
    return Spiking(base, Converted(federation.graph, federation.state, conversion), metrics=metrics)


def update_of(federation: Any, seed: int, conversion: ConversionConfig) -> dict[str, Tensor]:
    """Make what a client sends: a random ANN, converted, and its batch normalisation."""
    state, plain = federation.trained(seed)
    norms = {name: array for name, array in plain.items() if name.startswith("norm.")}
    return {**convert_state(federation.graph, state, IMAGES, conversion).parameters, **norms}


@pytest.mark.parametrize("thresholds", ["layer_mmse", "channel_mmse"])
@pytest.mark.parametrize(
    ("calibration", "kind", "shapes"),
    [
        ("potential", "potential", [(2,), (4,)]),
        ("bias_potential", "potential", [(2,), (4,)]),
        ("time_bias", "time_bias", [(5, 2), (5, 4)]),
    ],
)
def test_they_are_averaged_by_examples(
    federation: Any,
    update_reply: Callable[..., Message],
    scripted: Callable[..., Any],
    calibration: Any,
    thresholds: Any,
    kind: str,
    shapes: list[tuple[int, ...]],
) -> None:
    conversion = ConversionConfig(steps=5, calibration=calibration, thresholds=thresholds)
    strategy = strategy_of(federation, conversion)
    grid = Population(scripted([7], lambda message: message), partitions={7: 0})
    strategy.configure_train(1, federation.without_biases(), ConfigRecord(), grid)
    updates = [update_of(federation, seed, conversion) for seed in range(3)]
    replies = [update_reply(update, node, num_examples=EXAMPLES[node]) for node, update in enumerate(updates)]
    result, _ = strategy.aggregate_train(1, replies)
    assert isinstance(result, ArrayRecord)
    assert result.keys() == federation.public()  # none of them goes back to the clients
    assert strategy.network is not None
    assert strategy.network.parameters.keys() == {name for name in updates[0] if not name.startswith("norm.")}
    for spike, shape in zip(("relu", "relu_hidden"), shapes, strict=True):
        found = strategy.network.parameters[f"{spike}.{kind}"]
        assert found.shape == shape
        expected = sum(share / 65 * update[f"{spike}.{kind}"] for share, update in zip(EXAMPLES, updates, strict=True))
        torch.testing.assert_close(found, expected)
    silent = {name: array * (not name.endswith(kind)) for name, array in strategy.network.parameters.items()}
    logits = strategy.network.simulate(IMAGES, steps=5)[5]
    strategy.network.parameters.update(silent)  # type: ignore[attr-defined]
    assert not torch.equal(strategy.network.simulate(IMAGES, steps=5)[5], logits)


@pytest.mark.parametrize("calibration", ["potential", "time_bias"])
def test_an_update_without_them_or_of_another_shape_is_refused(
    federation: Any, update_reply: Callable[..., Message], calibration: Any
) -> None:
    conversion = ConversionConfig(steps=5, calibration=calibration)
    spec, update = strategy_of(federation, conversion).spec, update_of(federation, 0, conversion)
    name = f"relu.{calibration}"
    assert check_update(update_reply(update), spec).arrays.keys() == update.keys()
    for wrong in ({key: a for key, a in update.items() if key != name}, {**update, name: update[name][:1]}):
        with pytest.raises(UpdateRefused, match=name):
            check_update(update_reply(wrong), spec)


def test_too_few_biases_in_time_stop_the_run_before_it_starts(federation: Any) -> None:
    conversion = ConversionConfig(steps=8, calibration="time_bias", calibration_steps=4)
    with pytest.raises(ConfigError, match=r"calibration_steps=4.*steps=8"):
        strategy_of(federation, conversion)
