"""SCAFFOLD's server: what enters its control variate, and what doesn't."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from torch import Tensor

from snnfl.config import compose
from snnfl.updates import ArraySpec
from strategies import bases
from strategies.guarded import Guarded
from strategies.population import Population
from strategies.update import UpdateSpec

SHAPES = {"conv.weight": (3, 2), "norm.weight": (3,), "norm.running_mean": (3,)}
CONTROLLED = ("conv.weight", "norm.weight")
CLIENTS = 4

UpdateReply = Callable[..., Message]
Arrays = dict[str, Tensor]


def arrays(seed: int) -> Arrays:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def controls(seed: int) -> Arrays:
    return {name: array for name, array in arrays(1000 + seed).items() if name in CONTROLLED}


@pytest.fixture
def strategy(update_reply: UpdateReply, scripted: Callable[..., Any]) -> Guarded:
    """Of four clients, after the messages of its first round."""
    config = compose(None, ["strategy.name=scaffold", f"data.clients={CLIENTS}", "strategy.server_learning_rate=0.5"])
    specs = {name: ArraySpec(shape=shape) for name, shape in SHAPES.items()}
    metrics = frozenset({"num-examples", "loss", "accuracy", "seconds-train"})
    spec = UpdateSpec(arrays=specs, metrics=metrics, control={name: specs[name] for name in CONTROLLED})
    made = Guarded(bases.build_base(config), spec, seed=0, weighing=bases.weighing(config))
    grid = Population(scripted(range(CLIENTS), lambda m: m), partitions={n: n for n in range(CLIENTS)})
    made.grid = grid  # type: ignore[attr-defined]
    return made


def configure(strategy: Guarded, server_round: int, sent: Arrays) -> list[Message]:
    record = ArrayRecord(dict(sent))
    return list(strategy.configure_train(server_round, record, ConfigRecord(), strategy.grid))  # type: ignore[attr-defined]


def reply_of(update_reply: UpdateReply, n: int, control: Arrays | None = None, **metrics: float) -> Message:
    reply = update_reply(arrays(n), n, num_examples=10 * (n + 1), **metrics)
    reply.content["control"] = ArrayRecord(controls(n) if control is None else dict(control))
    return reply


def control_sent(messages: list[Message]) -> dict[str, np.ndarray]:
    found = [{n: a.numpy() for n, a in message.content["control"].items()} for message in messages]
    assert all(np.array_equal(each[n], found[0][n]) for each in found for n in each)
    return found[0]


def test_all_clients_count_alike_and_the_absent_ones_enter_the_control_variate(
    strategy: Guarded, update_reply: UpdateReply
) -> None:
    sent, c = arrays(99), dict.fromkeys(CONTROLLED, 0.0)
    for server_round, clients in ((1, (0, 1, 3)), (2, (2, 3))):
        messages = configure(strategy, server_round, sent)
        assert set(messages[0].content) == {"arrays", "config", "control"}
        for name, array in control_sent(messages).items():
            np.testing.assert_allclose(array, np.broadcast_to(np.asarray(c[name]), SHAPES[name]), atol=1e-6)
        found, _ = strategy.aggregate_train(server_round, [reply_of(update_reply, n) for n in clients])
        assert found is not None
        for name in SHAPES:
            mean = sum(arrays(n)[name] for n in clients) / len(clients)
            expected = mean if name.endswith("mean") else sent[name] + 0.5 * (mean - sent[name])
            np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name)
        c = {name: c[name] + sum(controls(n)[name] for n in clients) / CLIENTS for name in CONTROLLED}
        sent = {name: torch.from_numpy(array.numpy().copy()) for name, array in found.items()}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda content: content.pop("control"), "expected the records 'arrays' and 'metrics' and 'control', found"),
        (lambda content: content.update({"control": MetricRecord({"a": 1})}), "expected the records"),
        (lambda content: content.update({"more": MetricRecord({"a": 1})}), "expected the records"),
        (lambda content: content["control"].pop("conv.weight"), "control array 'conv.weight' is missing"),
        (lambda content: content["control"].update(ArrayRecord({"b": torch.ones(1)})), "control array 'b' is unknown"),
        (
            lambda content: content["control"].update(ArrayRecord({"norm.weight": torch.ones(4)})),
            "control norm.weight: expected float32[3], found float32[4]",
        ),
        (
            lambda content: content["control"].update(ArrayRecord({"norm.weight": torch.ones(3).double()})),
            "control norm.weight: expected float32[3], found float64[3]",
        ),
        (
            lambda content: content["control"].update(ArrayRecord({"norm.weight": torch.full((3,), float("inf"))})),
            "control norm.weight: holds NaN, infinity",
        ),
        (
            lambda content: content["control"].update(
                ArrayRecord({"norm.weight": Array("float32", (3,), "numpy.ndarray", b"\x93NUMPY junk")})
            ),
            "control norm.weight: ",
        ),
        (
            lambda content: content["control"].update(ArrayRecord({"norm.weight": torch.full((3,), 1e4)})),
            "control norm.weight goes as far as 1e+04, where",
        ),
    ],
    ids=["none", "kind", "surplus", "missing", "unknown", "shape", "type", "infinite", "junk", "beyond the bound"],
)
def test_a_control_variate_that_doesnt_fit_is_refused_with_its_update(
    strategy: Guarded, update_reply: UpdateReply, spoil: Callable[[Any], object], reason: str
) -> None:
    sent = arrays(99)
    configure(strategy, 1, sent)
    replies = [reply_of(update_reply, n) for n in range(CLIENTS)]
    spoil(replies[2].content)
    strategy.aggregate_train(1, replies)
    (fault,) = strategy.report.faults
    assert (fault.partition, fault.verdict) == (2, "refused")
    assert reason in fault.reason
    found = control_sent(configure(strategy, 2, sent))
    for name in CONTROLLED:
        expected = sum(controls(n)[name] for n in (0, 1, 3)) / CLIENTS
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


def test_another_strategys_update_has_no_control_variate(strategy: Guarded, update_reply: UpdateReply) -> None:
    spec = UpdateSpec(arrays=strategy.spec.arrays, metrics=strategy.spec.metrics)
    plain = Guarded(bases.build_base(compose(None, [])), spec, seed=0)
    plain.aggregate_train(1, [reply_of(update_reply, 0)])
    assert "expected the records 'arrays' and 'metrics', found" in plain.report.faults[0].reason


def test_an_aggregate_that_is_refused_leaves_the_control_variate(
    strategy: Guarded, update_reply: UpdateReply, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(strategy, 1, arrays(99))
    monkeypatch.setattr(strategy, "_moderate", lambda server_round, tensors: False)
    assert strategy.aggregate_train(1, [reply_of(update_reply, n) for n in range(CLIENTS)])[0] is None
    assert all((array == 0).all() for array in control_sent(configure(strategy, 2, arrays(99))).values())
