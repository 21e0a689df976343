"""What one client may do to the others' network: the bounds on updates, on what is recovered of them, on aggregates."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedYogi, Strategy
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from snnfl.config import ConversionConfig, compose
from snnfl.conversion import fold
from snnfl.protocol import train_metrics
from snnfl.updates import Converted, ann_specs, scale_of
from strategies import bases
from strategies.bounds import BLOCK, LENIENCE, changes, farthest, limits
from strategies.guarded import Guarded
from strategies.optimisers import ServerMomentum
from strategies.population import Population
from strategies.spiking import Spiking
from strategies.update import UpdateSpec

METRICS = frozenset({"num-examples", "loss", "accuracy", "seconds-train"})
CLIENTS = 6
LIAR = 5

UpdateReply = Callable[..., Message]
Play = Callable[..., tuple[Any, ArrayRecord | None]]


def averaging() -> FedAvg:
    return FedAvg(min_train_nodes=1, min_available_nodes=1)


def rms(array: Tensor) -> float:
    return math.sqrt(float((array.double() ** 2).mean()))


@pytest.fixture
def grid(scripted: Callable[..., Any]) -> Population:
    return Population(scripted(range(CLIENTS), lambda message: message), partitions={n: n for n in range(CLIENTS)})


def near(arrays: Mapping[str, Tensor], seed: int, distance: float = 0.02) -> dict[str, Tensor]:
    """Return what an honest client makes of these arrays: others, near by."""
    draw = torch.Generator().manual_seed(seed)
    moved = {n: a + distance * torch.randn(a.shape, generator=draw) for n, a in arrays.items()}
    return {n: a.abs() + 1e-3 if n.endswith(("var", "threshold")) else a for n, a in moved.items()}


@pytest.fixture
def play(federation: Any, update_reply: UpdateReply, grid: Population) -> Play:
    """Play a round of six clients, or fewer, of which the last one's arrays are changed by a function."""

    def run(
        lie: Callable[[dict[str, Tensor]], None],
        *,
        spiking: bool = False,
        clients: int = CLIENTS,
        base: Strategy | None = None,
        **options: Any,
    ) -> tuple[Any, ArrayRecord | None]:
        if spiking:
            sent, format = (
                federation.without_biases(),
                Converted(federation.graph, federation.state, ConversionConfig()),
            )
            options = {"metrics": METRICS, "scales": scales(federation), **options}
            strategy: Guarded = Spiking(base or averaging(), format, **options)
        else:
            sent = ArrayRecord(dict(federation.state))
            spec = UpdateSpec(arrays=ann_specs(federation.state), metrics=METRICS, scales=scales(federation))
            strategy = Guarded(base or averaging(), spec, seed=0, **options)
        strategy.configure_train(1, sent, ConfigRecord(), grid)
        common = spiking_update(federation) if spiking else federation.state
        updates = [near(common, seed) for seed in range(clients)]
        lie(updates[-1])
        replies = [update_reply(update, CLIENTS - clients + n) for n, update in enumerate(updates)]
        return strategy, strategy.aggregate_train(1, replies)[0]

    return run


def scales(federation: Any) -> dict[str, float]:
    return {name: scale_of(array) for name, array in federation.state.items()}


def spiking_update(federation: Any) -> dict[str, Tensor]:
    state = {**federation.state, "norm.running_var": federation.state["norm.running_var"] + 0.5}
    norms = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}
    update = {**fold(federation.graph, state), **{f"norm.{k}": state[f"norm.{name}"] for k, name in norms.items()}}
    return update | {f"{spike}.threshold": torch.ones(1) for spike in ("relu", "relu_hidden")}


def nothing(update: dict[str, Tensor]) -> None:
    """Be honest."""


def setting(name: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    def lie(update: dict[str, Tensor]) -> None:
        update[name] = torch.full_like(update[name], value)

    return lie


# The definitions.


def test_a_magnitude_is_the_root_mean_square_of_the_change_or_of_the_values() -> None:
    draw = torch.Generator().manual_seed(0)
    sent = {"w": torch.randn(3, 4, generator=draw), "norm.running_var": torch.rand(5, generator=draw)}
    arrays = {name: array + torch.rand(array.shape, generator=draw) for name, array in sent.items()}
    arrays["relu.threshold"] = torch.tensor([7.0])
    found = changes(arrays, sent)
    assert found["w"] == pytest.approx(rms(arrays["w"] - sent["w"]), rel=1e-5)
    deviations = arrays["norm.running_var"].sqrt() - sent["norm.running_var"].sqrt()
    assert found["norm.running_var"] == pytest.approx(rms(deviations), rel=1e-5)
    assert found["relu.threshold"] == 7
    assert changes({}, sent) == {}


@pytest.mark.parametrize("name", ["w", "norm.running_var"])
def test_a_large_array_has_the_magnitude_of_all_its_blocks(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    sent = {name: torch.rand(5, BLOCK // 2 - 1, generator=draw)}
    arrays = {name: sent[name] + torch.rand(sent[name].shape, generator=draw)}
    arrays["other"] = torch.rand(BLOCK + 1, generator=draw)
    found = changes(arrays, sent)
    difference = arrays[name].sqrt() - sent[name].sqrt() if name != "w" else arrays[name] - sent[name]
    assert found[name] == pytest.approx(rms(difference), rel=1e-5)
    assert found["other"] == pytest.approx(rms(arrays["other"]), rel=1e-5)
    assert list(found) == list(arrays)
    arrays[name][-1, -1] = math.nan
    assert math.isnan(changes(arrays, sent)[name])


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9), st.floats(0, 1e3), st.floats(1, 1e3))
def test_a_limit_is_a_multiple_of_the_lower_median_or_of_the_scale(
    values: list[float], scale: float, factor: float
) -> None:
    found = limits([{"a": value, "b": value} for value in values], {"a": scale}, factor, lenient={"b"})
    at_or_below = [v for v in values if 2 * sum(other <= v for other in values) >= len(values)]
    median = min(at_or_below) if len(values) > 1 else 0.0
    assert found["a"] == pytest.approx(factor * max(median, scale))
    assert found["b"] == pytest.approx(LENIENCE * factor * max(median, 1.0))


def test_what_is_no_number_goes_beyond_every_limit() -> None:
    most = limits([{"a": 1.0}, {"a": math.nan}, {"a": math.inf}], {}, 100.0)
    assert farthest({"a": math.nan}, most) == "a"
    assert farthest({"a": math.inf}, most) == "a"
    assert farthest({"a": most["a"]}, most) is None
    assert farthest({"a": 300.0, "b": 900.0}, {"a": 1.0, "b": 100.0}) == "a"


def test_the_scale_of_the_start_is_that_of_the_initial_weights(federation: Any) -> None:
    found = scales(federation)
    assert found["conv.weight"] == pytest.approx(rms(federation.state["conv.weight"]), rel=1e-6)
    assert found["norm.running_var"] == found["conv.bias"] == 1.0
    assert scale_of(torch.zeros(3, 3)) == 1.0


# One liar of six.


@pytest.mark.parametrize("name", ["conv.weight", "conv.bias", "norm.weight", "norm.running_mean", "norm.running_var"])
@pytest.mark.parametrize("value", [1e3, 1e6, 1e12])
def test_values_that_destroy_are_refused_and_the_others_aggregated(
    play: Play, caplog: pytest.LogCaptureFixture, name: str, value: float
) -> None:
    value = value**2 if name.endswith("running_var") and value < 1e6 else value
    with caplog.at_level(logging.WARNING, logger="strategies"):
        strategy, result = play(setting(name, value))
    (line,) = caplog.messages
    assert re.match(rf"round 1: reply of partition {LIAR} \(node {LIAR}\) refused: {name} goes as far as ", line)
    assert "(strategy.update_bound=100); if its client is honest, its training diverges: lower training.l" in line
    assert strategy.report.refused == 1
    _, honest = play(nothing, clients=CLIENTS - 1)
    for key, array in result.items():
        assert abs(array.numpy() - honest[key].numpy()).max() < 0.1


@pytest.mark.parametrize("clients", [1, 2, 3, 6])
@pytest.mark.parametrize("spiking", [False, True])
def test_a_cohort_of_any_size_has_bounds(play: Play, clients: int, spiking: bool) -> None:
    strategy, result = play(nothing, clients=clients, spiking=spiking)
    assert (strategy.report.refused, len(strategy.report.updates)) == (0, clients)
    assert result is not None
    name = "relu.threshold" if spiking else "conv.weight"
    strategy, result = play(setting(name, 1e5), clients=clients, spiking=spiking)
    assert (strategy.report.refused, len(strategy.report.updates)) == (1, clients - 1)
    assert (result is None) == (clients == 1)


@pytest.mark.parametrize("value", [2e3, 1e12])
@pytest.mark.parametrize("name", ["relu.threshold", "relu_hidden.threshold", "conv.bias", "head.bias", "head.weight"])
def test_nothing_destroys_the_servers_spiking_network(
    play: Play, caplog: pytest.LogCaptureFixture, name: str, value: float
) -> None:
    """A threshold of 1e12 silences its layer; a bias of that size makes its layer fire always."""
    with caplog.at_level(logging.WARNING, logger="strategies"):
        strategy, _ = play(setting(name, value), spiking=True)
    assert strategy.report.refused == 1
    assert re.search(rf"refused: (spiking )?{name} goes as far as", caplog.messages[0])
    honest, _ = play(nothing, spiking=True, clients=CLIENTS - 1)
    for key, array in strategy.network.parameters.items():
        torch.testing.assert_close(array, honest.network.parameters[key])


def small_scale(update: dict[str, Tensor]) -> None:
    """Let gamma/sigma be just above what counts as dead: the recovered weight is a million times the folded one."""
    update["norm.gamma"] = 2e-6 * torch.sqrt(update["norm.var"] + 1e-5)


def large_scale(update: dict[str, Tensor]) -> None:
    """Let sigma be next to nothing: the folded weight is 300 times what is recovered of it."""
    update["norm.var"] = torch.zeros_like(update["norm.var"])
    update["norm.gamma"] = torch.full_like(update["norm.gamma"], 50.0)
    update["conv.weight"] = update["conv.weight"] * 50.0 / math.sqrt(1e-5)


@pytest.mark.parametrize(("lie", "name"), [(small_scale, "conv.weight"), (large_scale, "spiking conv.weight")])
def test_what_gamma_and_sigma_do_is_bounded_too(
    play: Play, caplog: pytest.LogCaptureFixture, lie: Callable[[dict[str, Tensor]], None], name: str
) -> None:
    with caplog.at_level(logging.WARNING, logger="strategies"):
        strategy, result = play(lie, spiking=True)
    assert strategy.report.refused == 1
    assert f"refused: {name} goes as far as" in caplog.messages[0]
    assert max(abs(array.numpy()).max() for array in result.values()) < 10


def test_bounds_hold_before_robust_strategies_too(play: Play) -> None:
    strategy, _ = play(setting("conv.weight", 1e6), base=FedMedian(min_train_nodes=1, min_available_nodes=1))
    assert strategy.report.refused == 1


def test_without_a_bound_a_liar_ruins_the_average(play: Play) -> None:
    for spiking in (False, True):
        strategy, result = play(setting("head.weight", 1e11), spiking=spiking, update_bound=None)
        assert strategy.report.refused == 0
        assert abs(result["head.weight"].numpy()).max() > 1e10


def test_a_claimed_loss_is_bounded(play: Play, federation: Any, update_reply: UpdateReply, grid: Population) -> None:
    config = compose(
        None, ["strategy.name=qfedavg", "strategy.spiking=false", "strategy.q=2", f"data.clients={CLIENTS}"]
    )
    spec = UpdateSpec(arrays=ann_specs(federation.state), metrics=train_metrics(config), scales=scales(federation))
    strategy = Guarded(bases.build_base(config), spec, seed=0)
    strategy.configure_train(1, ArrayRecord(dict(federation.state)), ConfigRecord(), grid)
    replies = [
        update_reply(near(federation.state, n), n, received_loss=2.0, seconds_evaluate=0.0) for n in range(CLIENTS)
    ]
    replies[LIAR].content["metrics"]["received-loss"] = 1e5
    strategy.aggregate_train(1, replies)
    assert strategy.report.refused == 1
    assert len(strategy.report.updates) == CLIENTS - 1


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.parametrize("spiking", [False, True])
def test_whatever_one_client_sends_the_aggregate_stays_near(play: Play, spiking: bool, data: st.DataObject) -> None:
    """Any array may have any value: what is sent next, and the server's network, go by the bound and no farther."""
    extreme = st.sampled_from([0.0, 1e-30, 2e-6, 0.5, 3.0, 50.0, 1e3, 1e6, 1e9, 1e12])

    def lie(update: dict[str, Tensor]) -> None:
        for name in data.draw(st.lists(st.sampled_from(sorted(update)), min_size=1, max_size=4)):
            factor = data.draw(extreme)
            kind = data.draw(st.sampled_from(["all", "times", "one"]))
            if kind == "all":
                update[name] = torch.full_like(update[name], factor)
            elif kind == "times":
                update[name] = update[name] * factor
            else:
                update[name].flatten()[0] = factor

    strategy, result = play(lie, spiking=spiking)
    assert len(strategy.report.updates) >= CLIENTS - 1
    assert result is not None
    far = changes(result.to_torch_state_dict(), strategy._sent)
    for name, value in far.items():  # honest clients are 0.02 away: the scale of the start decides
        assert value <= 1.01 * (100 * max(strategy.scales[name], 0.1) / CLIENTS + 0.1), name
    if spiking:
        for name, value in changes(strategy.network.parameters, {}).items():
            assert value <= 1.01 * (LENIENCE * 100 * max(strategy.scales[f"spiking {name}"], 2.0) / CLIENTS + 2), name


def test_a_liar_cannot_raise_the_bound_from_round_to_round(
    federation: Any, update_reply: UpdateReply, grid: Population
) -> None:
    """At the bound in each of 60 rounds it moves the weights by 60 steps, not by a power of 60."""
    spec = UpdateSpec(arrays=ann_specs(federation.state), metrics=METRICS, scales=scales(federation))
    strategy = Guarded(averaging(), spec, seed=0)
    sent = ArrayRecord(dict(federation.state))
    for server_round in range(1, 61):
        strategy.configure_train(server_round, sent, ConfigRecord(), grid)
        held = dict(sent.to_torch_state_dict())
        updates = [near(held, 100 * server_round + n) for n in range(CLIENTS)]
        updates[LIAR] = {**updates[LIAR], "conv.weight": held["conv.weight"] + 99 * strategy.scales["conv.weight"]}
        sent, _ = strategy.aggregate_train(server_round, [update_reply(u, n) for n, u in enumerate(updates)])
        assert strategy.report.refused == 0
    far = rms(sent.to_torch_state_dict()["conv.weight"] - federation.state["conv.weight"])
    assert far < 60 * 100 / CLIENTS * strategy.scales["conv.weight"]


# The aggregate.


class Jumping(FedAvg):
    """An average, but for one round in which the strategy goes mad."""

    memory = 0.0

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.memory = self.memory + 1
        if server_round == 2:
            arrays["conv.weight"] = Array(arrays["conv.weight"].numpy() * 1e5)
        return arrays, metrics


def test_an_aggregate_that_jumps_is_refused_and_said(
    federation: Any, update_reply: UpdateReply, grid: Population, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = Guarded(
        Jumping(min_train_nodes=1, min_available_nodes=1),
        UpdateSpec(arrays=ann_specs(federation.state), metrics=METRICS, scales=scales(federation)),
        seed=0,
    )
    sent = ArrayRecord(dict(federation.state))
    found = []
    with caplog.at_level(logging.WARNING, logger="strategies"):
        for server_round in (1, 2, 3):
            strategy.configure_train(server_round, sent, ConfigRecord(), grid)
            replies = [update_reply(near(federation.state, n), n) for n in range(CLIENTS)]
            found.append(strategy.aggregate_train(server_round, replies)[0])
    assert [arrays is not None for arrays in found] == [True, False, True]
    (line,) = caplog.messages
    assert re.match(
        r"round 2: the aggregate's conv.weight goes as far as \S+, where \S+ is allowed \(.*=100\); the old", line
    )
    assert strategy.base.memory == 2, "the strategy has forgotten the round"


OPTIMISERS: dict[str, Callable[[], Strategy]] = {
    "fedadam": lambda: FedAdam(min_train_nodes=1, min_available_nodes=1, eta=0.1, beta_1=0.9, beta_2=0.99),
    "fedyogi": lambda: FedYogi(min_train_nodes=1, min_available_nodes=1, eta=0.1, beta_1=0.9, beta_2=0.99),
    "fedavgm": lambda: ServerMomentum(
        min_train_nodes=1, min_available_nodes=1, server_learning_rate=1.0, server_momentum=0.9
    ),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_forgets_a_step_that_is_refused(
    federation: Any, update_reply: UpdateReply, grid: Population, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Momentum that remembers a refused step would have every later one refused, too."""
    spec = UpdateSpec(arrays=ann_specs(federation.state), metrics=METRICS, scales=scales(federation))

    def results(refused: set[int]) -> list[dict[str, np.ndarray]]:
        strategy = Guarded(OPTIMISERS[name](), spec, seed=0)
        sent, made = ArrayRecord(dict(federation.state)), []
        for server_round in (1, 2, 3):
            if server_round == 2 and not refused:
                continue
            strategy.configure_train(server_round, sent, ConfigRecord(), grid)
            monkeypatch.setattr(strategy, "_moderate", lambda n, arrays, now=server_round: now not in refused)
            replies = [update_reply(near(federation.state, 7 * server_round + n), n) for n in range(CLIENTS)]
            arrays, _ = strategy.aggregate_train(server_round, replies)
            sent = sent if arrays is None else arrays
            if arrays is not None:
                made.append({key: array.numpy() for key, array in arrays.items()})
        return made

    assert isinstance(OPTIMISERS[name](), (FedAdam, FedYogi, FedAvgM))
    for ours, expected in zip(results({2}), results(set()), strict=True):
        for key, array in expected.items():
            np.testing.assert_array_equal(ours[key], array)
