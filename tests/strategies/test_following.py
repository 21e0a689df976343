"""Where a strategy makes something else than the mean, the server's spiking network follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from snnfl.config import ConversionConfig, compose
from snnfl.updates import Converted
from strategies.combinations import network_rule
from strategies.population import Population
from strategies.spiking import Spiking

METRICS = frozenset({"num-examples", "loss", "accuracy", "seconds-train"})
EXAMPLES = [10, 30, 25]
EPSILON = 1e-5

UpdateReply = Callable[..., Message]


class Moved(FedAvg):
    """A step of its own: the mean, times a factor for each array."""

    factors: dict[str, float]

    def aggregate_train(self, server_round: int, replies: Any) -> tuple[ArrayRecord, MetricRecord]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        return ArrayRecord({n: Array(a.numpy() * self.factors.get(n, 1.1)) for n, a in arrays.items()}), metrics


def follow(
    federation: Any, replies: list[Message], scripted: Any, *, bias_back: bool = False, **factors: float
) -> tuple[Spiking, dict[str, np.ndarray]]:
    base = Moved(min_train_nodes=1, min_available_nodes=1)
    base.factors = {name.replace("_", ".", 1): factor for name, factor in factors.items()}
    strategy = Spiking(
        base,
        Converted(federation.graph, federation.state, ConversionConfig(), bias_back=bias_back),
        metrics=METRICS,
        follows=True,
    )
    sent = ArrayRecord(dict(federation.state)) if bias_back else federation.without_biases()
    grid = Population(scripted([7], lambda message: message), partitions={7: 0})
    strategy.configure_train(1, sent, ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(1, replies)
    return strategy, {name: array.numpy() for name, array in arrays.items()}


def replies_of(federation: Any, update_reply: UpdateReply) -> list[Message]:
    return [update_reply(federation.trained(n)[1], n, num_examples=count) for n, count in enumerate(EXAMPLES)]


def mean(federation: Any, of: Callable[[dict[str, Tensor]], Tensor]) -> np.ndarray:
    """Average something of the updates by examples, in float64."""
    parts = [of({k: a.double() for k, a in federation.trained(n)[1].items()}) for n in range(len(EXAMPLES))]
    return (sum(count * part for count, part in zip(EXAMPLES, parts, strict=True)) / sum(EXAMPLES)).numpy()


@pytest.mark.parametrize("bias_back", [False, True])
def test_weights_are_the_aggregates_and_what_it_does_not_tell_is_the_clients_mean(
    federation: Any, update_reply: UpdateReply, scripted: Any, bias_back: bool
) -> None:
    strategy, ann = follow(federation, replies_of(federation, update_reply), scripted, bias_back=bias_back)
    found = {name: array.numpy() for name, array in strategy.network.parameters.items()}
    scale = ann["norm.weight"] / np.sqrt(ann["norm.running_var"] + EPSILON)
    known = ann["norm.bias"] - ann["norm.running_mean"] * scale
    if bias_back:  # the server's own biases, moved like the weights
        conv, hidden, head = known + ann["conv.bias"] * scale, ann["hidden.bias"], ann["head.bias"]
    else:
        conv = known + mean(
            federation,
            lambda u: (
                u["conv.bias"] - u["norm.beta"] + u["norm.mean"] * u["norm.gamma"] / torch.sqrt(u["norm.var"] + EPSILON)
            ),
        )
        hidden, head = (mean(federation, lambda u, n=n: u[f"{n}.bias"]) for n in ("hidden", "head"))
    expected = {
        "conv.weight": ann["conv.weight"] * scale[:, None, None, None],
        "hidden.weight": ann["hidden.weight"],
        "head.weight": ann["head.weight"],
        "conv.bias": conv,
        "hidden.bias": hidden,
        "head.bias": head,
        **{n: mean(federation, lambda u, n=n: u[n]) for n in ("relu.threshold", "relu_hidden.threshold")},
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("bias_back", [False, True])
def test_of_one_client_whose_ann_is_taken_over_it_is_that_clients_network(
    federation: Any, update_reply: UpdateReply, scripted: Any, bias_back: bool
) -> None:
    """Calibrated biases, which no ANN's array tells, included."""
    update = federation.trained(3)[1]
    update |= {name: update[name] + 0.3 for name in ("conv.bias", "hidden.bias", "head.bias")}
    factors = {name.replace(".", "_", 1): 1.0 for name in federation.state}
    strategy, _ = follow(federation, [update_reply(update, 0)], scripted, bias_back=bias_back, **factors)
    for name, array in strategy.network.parameters.items():
        torch.testing.assert_close(array, update[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_its_analog_twin_is_the_ann_that_clients_receive(
    federation: Any, update_reply: UpdateReply, scripted: Any
) -> None:
    """With biases back and no calibration, which the updates here have none of, the twin is the server's ANN."""
    strategy, ann = follow(federation, replies_of(federation, update_reply), scripted, bias_back=True)
    images = torch.rand(5, 1, 4, 4)
    state = {name: torch.from_numpy(array) for name, array in ann.items()}
    hidden = torch.nn.functional.conv2d(images, state["conv.weight"], state["conv.bias"])
    hidden = torch.nn.functional.batch_norm(
        hidden, state["norm.running_mean"], state["norm.running_var"], state["norm.weight"], state["norm.bias"]
    )
    hidden = torch.relu(hidden).flatten(1) @ state["hidden.weight"].T + state["hidden.bias"]
    expected = torch.relu(hidden) @ state["head.weight"].T + state["head.bias"]
    torch.testing.assert_close(strategy.network.analog(images), expected, rtol=1e-3, atol=1e-4)


def test_a_network_that_is_not_finite_is_not_kept(
    federation: Any, update_reply: UpdateReply, scripted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    replies = replies_of(federation, update_reply)
    strategy, _ = follow(federation, replies, scripted)
    strategy.update_bound = None
    strategy.base.factors |= {"conv.weight": 1e37, "norm.weight": 100.0}
    before = strategy.network
    arrays, _ = strategy.aggregate_train(2, replies)
    assert arrays is not None
    assert strategy.network is before
    assert caplog.messages[-1] == ("round 2: conv.weight of the spiking network isn't finite; the last network is kept")


@pytest.mark.parametrize(
    ("options", "follows", "robust"),
    [
        (["strategy.name=fedavg"], False, False),
        (["strategy.name=moon"], False, False),
        (["strategy.name=fedadam"], True, False),
        (["strategy.name=qfedavg"], True, False),
        (["strategy.name=krum"], False, True),
        (["strategy.name=fedavg", "privacy.mechanism=local"], False, False),
    ],
)
def test_who_follows(options: list[str], follows: bool, robust: bool) -> None:
    rule = network_rule(compose(None, options))
    assert (rule["follows"], rule["network_base"] is not None) == (follows, robust)


def test_a_liar_cannot_put_into_the_network_what_no_bound_on_its_parts_would_see(
    federation: Any, update_reply: UpdateReply, scripted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Mean, gamma and deviation are each admissible, and ``mean gamma / sigma`` of them is not."""
    lie = {n: a.clone() for n, a in federation.trained(1)[1].items()}
    norm = next(node.norm for node in federation.graph.affines if node.norm is not None)
    for field, value in (("mean", 90.0), ("gamma", 90.0), ("var", 0.0)):
        lie[f"{norm}.{field}"] = torch.full_like(lie[f"{norm}.{field}"], value)
    for node in federation.graph.affines:
        lie[f"{node.name}.weight"] = torch.zeros_like(lie[f"{node.name}.weight"])
    replies = [update_reply(federation.trained(n)[1], n) for n in range(3)] + [update_reply(lie, 4)]
    strategy, _ = follow(federation, replies, scripted)
    assert strategy.report.refused == 1
    assert "unexplained " in caplog.text
    assert strategy.network is not None
    assert max(float(array.abs().max()) for array in strategy.network.parameters.values()) < 1e3
