"""Every strategy: its S-variant's ANN is what the strategy makes of the recovered weights; a robust one is robust."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from snnfl.config import Config, ConversionConfig, compose
from snnfl.protocol import train_metrics
from snnfl.updates import Converted, ann_specs, control_specs
from strategies import bases
from strategies.combinations import build_checked, network_rule
from strategies.guarded import Guarded
from strategies.population import Population, seeded_draws
from strategies.server_app import cheap_collection
from strategies.spiking import Spiking
from strategies.update import UpdateSpec

CLIENTS, ROUNDS = 8, 3
LIAR = CLIENTS - 1

CONTROLLED = {"conv.weight": (2, 1, 3, 3), "norm.weight": (2,), "norm.bias": (2,), "hidden.weight": (4, 8)}
CONTROLLED |= {"head.weight": (3, 4)}
BIASES = {"conv.bias": (2,), "hidden.bias": (4,), "head.bias": (3,)}
"""What SCAFFOLD has a control variate of: in an S-run not of the private biases."""

UpdateReply = Callable[..., Message]
Arrays = dict[str, Tensor]

SENDING = [name for name in bases.names() if name != "solo"]  # SOLO sends no weights: there is nothing to recover
CONVERTED = [name for name in SENDING if name != "fedbn"]  # which has no S-variant
PRIVATE = ["central fedavg", "central fedadam", "local fedavg", "local fedadam", "local krum"]


def configured(kind: str, *overrides: str) -> Config:
    mechanism, _, name = kind.rpartition(" ")
    noise = [f"privacy.mechanism={mechanism}", "privacy.noise_multiplier=0.1", "privacy.clipping_norm=2"]
    private = noise if mechanism else []
    return compose(None, [f"strategy.name={name}", f"data.clients={CLIENTS}", *private, *overrides])


def spiking(federation: Any, config: Config) -> Spiking:
    format = Converted(federation.graph, federation.state, ConversionConfig())
    return Spiking(
        build_checked(config),
        format,
        control=control_specs(format.sent_specs) if config.strategy.name == "scaffold" else None,
        metrics=train_metrics(config) - {"seconds-convert"},
        update_bound=config.strategy.update_bound,
        weighing=bases.weighing(config),
        **network_rule(config),
    )


def reply_of(update_reply: UpdateReply, config: Config, partition: int, arrays: Arrays) -> Message:
    """Make a client's reply, with the metrics that only this strategy's clients send."""
    reply = update_reply(arrays, partition, num_examples=10 + partition)
    known = {"received-loss": 0.5 + partition, "seconds-evaluate": 0.0}
    known |= {"state-round": 0.0, "local-steps": 2.0 + partition}
    reply.content["metrics"].update({name: value for name, value in known.items() if name in train_metrics(config)})
    if config.strategy.name == "scaffold":
        shapes = CONTROLLED if config.strategy.spiking else CONTROLLED | BIASES
        draw = torch.Generator().manual_seed(partition)
        control = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
        reply.content["control"] = ArrayRecord(control)
    return reply


def recovered(update: Arrays, order: list[str]) -> Arrays:
    """Invert the folding of the two layers with batch normalisation: ``W_A = W_S sigma / gamma``."""
    state = {"hidden.weight": update["hidden.weight"], "head.weight": update["head.weight"]}
    scale = torch.sqrt(update["norm.var"] + 1e-5) / update["norm.gamma"]
    state["conv.weight"] = update["conv.weight"] * scale.view(-1, 1, 1, 1)
    names = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
    state |= {f"norm.{name}": update[f"norm.{short}"] for name, short in names.items()}
    return {name: state[name] for name in order}


def numbers(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}


@pytest.mark.parametrize("kind", [*CONVERTED, *PRIVATE])
def test_the_s_variants_ann_is_the_strategy_applied_to_the_recovered_weights(
    federation: Any, update_reply: UpdateReply, scripted: Callable[..., Any], kind: str
) -> None:
    config = configured(kind)
    ours, plain = spiking(federation, config), build_checked(config)
    grid = Population(scripted(range(CLIENTS), lambda message: message), partitions={n: n for n in range(CLIENTS)})
    sent, order = federation.without_biases(), list(federation.without_biases())
    for t in range(1, ROUNDS + 1):  # several, because some strategies have a memory
        ours.configure_train(t, sent, ConfigRecord(), grid)
        plain.configure_train(t, sent, ConfigRecord(), grid)
        updates = [federation.trained(100 * t + n)[1] for n in range(CLIENTS)]
        replies = [reply_of(update_reply, config, n, update) for n, update in enumerate(updates)]
        anns = [reply_of(update_reply, config, n, recovered(update, order)) for n, update in enumerate(updates)]
        if kind.endswith("qfedavg"):  # its clients count by their loss
            for n, ann in enumerate(anns):
                ann.content["metrics"]["num-examples"] = (0.5 + n) ** 0.1
        before = [dict(reply.content["arrays"]) for reply in replies]
        with cheap_collection():  # as a run does
            found, _ = ours.aggregate_train(t, replies)
            with seeded_draws(0, t, "aggregation"):
                expected, _ = plain.aggregate_train(t, anns)
        assert ours.report.refused == 0
        assert list(found) == order
        for name, array in numbers(expected).items():
            array = np.maximum(array, 0) if name == "norm.running_var" else array
            np.testing.assert_allclose(found[name].numpy(), array, rtol=1e-5, atol=1e-5, err_msg=name)
        assert [dict(reply.content["arrays"]) for reply in replies] == before
        sent = found


ROBUST = [name for name in bases.names() if bases.find(name).kind == "robust"]


@pytest.mark.parametrize("name", ROBUST)
def test_one_liar_moves_the_average_and_not_a_robust_aggregate(
    federation: Any, update_reply: UpdateReply, scripted: Callable[..., Any], name: str
) -> None:
    """Honest clients differ by 1e-2; the liar's weights are a thousand away, its spiking network likewise.

    No bound keeps the liar out before the strategy sees it.
    """
    unbounded = "strategy.update_bound=null"

    def aggregates(config: Config, lie: float) -> tuple[dict[str, np.ndarray], Arrays]:
        strategy = spiking(federation, config)
        strategy.configure_train(
            1, federation.without_biases(), ConfigRecord(), Population(scripted([0], lambda m: m), partitions={0: 0})
        )
        common, replies = federation.trained(0)[1], []
        for n in range(CLIENTS):
            noise = torch.Generator().manual_seed(n)
            update = {k: a + 1e-2 * torch.rand(a.shape, generator=noise) for k, a in common.items()}
            if n == LIAR:
                update |= {k: a + lie for k, a in update.items() if k.endswith((".weight", ".bias", ".threshold"))}
            replies.append(reply_of(update_reply, config, n, update))
        arrays, _ = strategy.aggregate_train(1, replies)
        assert strategy.report.refused == 0
        return numbers(arrays), dict(strategy.network.parameters)

    honest_ann, honest_snn = aggregates(configured("fedavg", unbounded), 0.0)
    fallen_ann, fallen_snn = aggregates(configured("fedavg", unbounded), 1000.0)
    ann, snn = aggregates(configured(name, unbounded), 1000.0)
    for key in ("conv.weight", "hidden.weight", "head.weight"):
        assert abs(fallen_ann[key] - honest_ann[key]).max() > 50
        assert abs(ann[key] - honest_ann[key]).max() < 1
    for key, array in honest_snn.items():
        assert float((fallen_snn[key] - array).abs().max()) > 50
        assert float((snn[key] - array).abs().max()) < 0.1
    assert set(snn) == set(honest_snn)


@pytest.mark.parametrize("name", SENDING)
def test_strategies_are_different(federation: Any, update_reply: UpdateReply, name: str) -> None:
    """None is FedAvg under another name, but for those that differ on the clients alone."""
    config = configured(name, "strategy.spiking=false")
    names = train_metrics(config)
    arrays = ann_specs(federation.state)
    control = control_specs(arrays) if name == "scaffold" else {}
    strategy = Guarded(build_checked(config), UpdateSpec(arrays=arrays, metrics=names, control=control), seed=0)
    sent = ArrayRecord(dict(federation.state))
    grid = type("Nodes", (), {"get_node_ids": lambda self: list(range(CLIENTS))})()
    results = []
    for t in (1, 2):  # momentum begins to matter in the second round
        strategy.configure_train(t, sent, ConfigRecord(), grid)
        states = [federation.trained(100 * t + n)[0] for n in range(CLIENTS)]
        replies = [reply_of(update_reply, config, n, state) for n, state in enumerate(states)]
        plain = [update_reply(state, n, num_examples=10 + n) for n, state in enumerate(states)]
        average, _ = FedAvg().aggregate_train(t, plain)
        found, _ = strategy.aggregate_train(t, replies)
        results.append(max(abs(found[key].numpy() - average[key].numpy()).max() for key in average))
    assert (max(results) > 1e-3) == (name not in ("fedavg", "fedprox", "moon", "fedlec", "fedbn"))


@pytest.mark.parametrize("kind", [*CONVERTED, *PRIVATE])
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_accepted_leaves_finite_weights(
    federation: Any, update_reply: UpdateReply, scripted: Callable[..., Any], kind: str, data: st.DataObject
) -> None:
    extreme = st.sampled_from([0.0, 1e-45, 2e-6, 1e11, 1e12, -1e12])
    config = configured(kind, f"strategy.update_bound={data.draw(st.sampled_from(['null', '100', '1e6']))}")
    strategy = spiking(federation, config)
    grid = Population(scripted(range(CLIENTS), lambda message: message), partitions={n: n for n in range(CLIENTS)})
    sent = federation.without_biases()
    for t in (1, 2):
        strategy.configure_train(t, sent, ConfigRecord(), grid)
        replies = []
        for n in range(CLIENTS):
            update = federation.trained(n)[1]
            for name in data.draw(st.lists(st.sampled_from(sorted(update)), max_size=2)):
                update[name] = torch.full_like(update[name], data.draw(extreme))
            reply = reply_of(update_reply, config, n, update)
            for name in ("loss", "received-loss", "norm_bit"):
                if name in reply.content["metrics"]:
                    reply.content["metrics"][name] = data.draw(st.sampled_from([0.0, 1e-12, 1e12, 1.0, -1.0]))
            for name in CONTROLLED if "control" in reply.content else ():
                if data.draw(st.booleans()):
                    forged = {name: torch.full(CONTROLLED[name], data.draw(extreme))}
                    reply.content["control"].update(ArrayRecord(forged))
            replies.append(reply)
        found, _ = strategy.aggregate_train(t, replies)
        assert strategy.report.refused + len(strategy.report.updates) == CLIENTS or found is None
        if found is not None:
            assert all(np.isfinite(array).all() for array in numbers(found).values())
            assert all(bool(torch.isfinite(array).all()) for array in strategy.network.parameters.values())
            control = getattr(strategy.base, "control", None) or ArrayRecord()
            assert all(np.isfinite(array).all() for array in numbers(control).values())
            sent = found
