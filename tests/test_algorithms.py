"""Each algorithm's run, against a literal version of its paper on the same data from the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from references import (
    fedavg,
    fedbn,
    fedlec,
    fednova,
    fedprox,
    moon,
    private,
    qfedavg,
    robust,
    scaffold,
    server_optimisers,
    solo,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from clients import client_app
from clients.control import OWN_CONTROL
from clients.norm_mod import PRIVATE_NORMS
from clients.private_state import OWN_MODEL
from experiments.engines.in_process import run_in_process
from snnfl import rng
from snnfl.config import Config, PrivacyConfig, RunConfig, StrategyConfig, compose, flatten
from snnfl.data import batches, test_batches
from snnfl.privacy.noise import Stream, new_key
from snnfl.training import evaluate, exchangeable
from snnfl.workspace import Workspace
from strategies import bases
from strategies.checkpoint import intact_checkpoints
from strategies.run_directory import ANN_FILE, CHECKPOINTS, SNN_FILE, read_metrics
from strategies.server_app import server_app

CLIENTS, ROUNDS, RATE, IMAGES = 5, 3, 0.05, "data.training_images=480"

Epochs = list[list[tuple[Tensor, Tensor]]]


def configuration(directory: Path, name: str, *overrides: str) -> Config:
    federation = [f"data.clients={CLIENTS}", f"run.rounds={ROUNDS}", "data.partition=dirichlet", "data.beta=2", IMAGES]
    sgd = ["training.batch_size=32", "training.epochs=1", f"training.learning_rate={RATE}", "training.weight_decay=0"]
    plain = ["strategy.spiking=false", f"strategy.name={name}", "evaluation.images=10"]
    return compose(None, [f"run.directory={directory}", *federation, *sgd, *plain, *overrides])


def problem(config: Config) -> tuple[nn.Module, dict[int, list[Epochs]]]:
    """Return the initial model and each round's epochs of batches of each client: what every version starts from."""
    work = Workspace(config)
    data = {}
    for t in range(1, ROUNDS + 1):
        data[t] = []
        for k, indices in enumerate(work.partitions):
            draw = rng.generator(config.run.seed, "batches", t, k)
            data[t].append(
                [
                    list(batches(work.dataset, indices, config.training.batch_size, generator=draw, augment=False))
                    for _ in range(config.training.epochs)
                ]
            )
    return copy.deepcopy(work.model), data


def final(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "run" / ANN_FILE)


def assert_equal(
    found: dict[str, Tensor], model: nn.Module, before: nn.Module, ties: float = 0.0, by: float = 1e-2
) -> None:
    """Compare to 1e-6, but for a share ``ties`` of the weights, which may differ ``by`` more."""
    expected, initial = exchangeable(model), exchangeable(before)
    assert found.keys() == expected.keys()
    off = torch.cat([((found[n] - a).abs() > 1e-6 * (1 + a.abs())).flatten() for n, a in expected.items()])
    assert off.float().mean() <= ties
    for name, array in expected.items():
        tolerance = by if ties else 1e-6
        torch.testing.assert_close(
            found[name], array, rtol=1e-6, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )
    moved = max(float((array - initial[name]).abs().max()) for name, array in expected.items())
    assert moved > 1e-2  # so that the equality says something


PAPERS: dict[str, tuple[list[str], Callable[..., nn.Module], dict[str, Any]]] = {
    "fedavg": ([], fedavg.run, {}),
    "fedprox": (["strategy.proximal_mu=2"], fedprox.run, {"mu": 2}),
    "moon": (
        ["strategy.contrastive_mu=5", "strategy.temperature=0.4", "model.projection_head=true"],
        moon.run,
        {"mu": 5, "temperature": 0.4},
    ),
    "fedlec": (
        [
            "data.partition=pathological",
            "data.classes_per_client=4",
            "strategy.logit_calibration=0.5",
            "strategy.spread_weight=0.1",
            "strategy.distillation_weight=2",
        ],
        fedlec.run,
        {"tau": 0.5, "theta": 0.1, "lamda": 2},
    ),
    "fedavgm": (
        ["strategy.server_learning_rate=0.8", "strategy.server_momentum=0.7"],
        server_optimisers.fedavgm,
        {"server_rate": 0.8, "momentum": 0.7},
    ),
    "fedadam": (
        ["strategy.server_learning_rate=0.03", "strategy.beta_1=0.8", "strategy.tau=0.01"],
        server_optimisers.adaptive,
        {"kind": "adam", "server_rate": 0.03, "beta_1": 0.8, "beta_2": 0.99, "tau": 0.01},
    ),
    "fedyogi": (
        ["strategy.server_learning_rate=0.02", "strategy.beta_1=0.5", "strategy.tau=0.05"],
        server_optimisers.adaptive,
        {"kind": "yogi", "server_rate": 0.02, "beta_1": 0.5, "beta_2": 0.99, "tau": 0.05},
    ),
    "fedadagrad": (
        ["strategy.server_learning_rate=0.02", "strategy.tau=0.05"],
        server_optimisers.adaptive,
        {"kind": "adagrad", "server_rate": 0.02, "tau": 0.05},
    ),
    "qfedavg": (["strategy.q=0.5"], qfedavg.run, {"q": 0.5}),
    "fednova": ([], fednova.run, {}),
    "scaffold": (["strategy.server_learning_rate=0.8"], scaffold.run, {"server_rate": 0.8}),
    "fedmedian": ([], robust.run, {"rule": robust.median}),
    "fedtrimmedavg": (
        ["strategy.trimmed_fraction=0.25"],
        robust.run,
        {"rule": robust.trimmed_mean, "beta": 0.25},
    ),
    "krum": ([], robust.run, {"rule": robust.krum, "f": 1}),
    "multikrum": (
        ["strategy.selected_clients=3"],
        robust.run,
        {"rule": robust.multi_krum, "f": 1, "m": 3},
    ),
    "bulyan": (
        ["data.clients=7"],
        robust.run,
        {"rule": robust.bulyan, "f": 1},
    ),
}


def noise_of_round(t: int, purpose: str, count: int) -> np.ndarray:
    """Return what a run with ``privacy.noise_seed=0`` draws in a round."""
    return Stream(new_key(0), purpose, t).normal(count)


ADAPTIVE = {"quantile": 0.7, "eta": 0.5, "sigma_b": 0.4}
PRIVATE = [
    "privacy.mechanism=central",
    "privacy.noise_multiplier=0.1",
    "privacy.clipping_norm=0.8",
    "privacy.noise_seed=0",
]
FOLLOWING = ["privacy.target_clipped_quantile=0.3", "privacy.clip_norm_lr=0.5", "privacy.clipped_count_stddev=0.4"]
for _name, _options, _parameters in (("fixed", [], {}), ("adaptive", FOLLOWING, ADAPTIVE)):
    PAPERS[f"fedavg, {_name} clipping"] = (
        [*PRIVATE, *_options],
        private.run,
        {"clip": 0.8, "z": 0.1, "draws": noise_of_round, **_parameters},
    )


UNIFORM = [name for name in PAPERS if "clipping" not in name and bases.find(name).weighs]


@cache
def averaged(config: Config) -> dict[str, Tensor]:
    """Return what FedAvg makes of the data and the model of a configuration; most algorithms have the same."""
    return exchangeable(fedavg.run(*problem(config), ROUNDS, rate=RATE))


def assert_run_is_the_papers_algorithm(directory: Path, name: str, *options: str, **more: Any) -> None:
    overrides, literal, parameters = PAPERS[name]
    config = configuration(directory, name.partition(",")[0], *overrides, *options)
    initial, data = problem(config)
    run_in_process(server_app(), client_app.app, run_config=flatten(config), clients=config.data.clients)
    expected = literal(copy.deepcopy(initial), data, ROUNDS, rate=RATE, **parameters, **more)
    if config.model.batch_norm:
        # Rounding may put an input of ReLU on the other side of zero: the literal version itself moves by 1e-4 when
        # its first weights are moved by 6e-8. Without batch normalisation that doesn't happen here.
        assert_equal(final(directory), expected, initial, ties=1.0, by=1e-2 if name == "bulyan" else 1e-3)
    else:  # where two updates are equally far from the median, rounding decides which of them Bulyan takes
        assert_equal(final(directory), expected, initial, ties=1e-3 if name == "bulyan" else 0.0)
    if name != "fedavg" or more:  # and not FedAvg under another name
        average = averaged(
            replace(config, run=RunConfig(), strategy=StrategyConfig(spiking=False), privacy=PrivacyConfig())
        )
        assert max(float((final(directory)[n] - average[n]).abs().max()) for n in average) > 5e-3


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("name", PAPERS)
def test_a_run_is_the_papers_algorithm(tmp_path: Path, name: str, batch_norm: bool) -> None:
    assert_run_is_the_papers_algorithm(tmp_path, name, f"model.batch_norm={batch_norm}")


@pytest.mark.parametrize("name", UNIFORM)
def test_with_uniform_weights_all_clients_count_alike(tmp_path: Path, name: str) -> None:
    assert_run_is_the_papers_algorithm(tmp_path, name, "strategy.weighting=uniform", uniform=True)


@pytest.mark.parametrize("spiking", [False, True])
def test_solo_is_training_alone(tmp_path: Path, spiking: bool) -> None:
    kept: dict[int, dict[str, Tensor]] = {}

    class Watched(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            received = len(message.content["arrays"]) if "arrays" in message.content else 0
            reply = client_app.app(message, context)
            if message.metadata.message_type == "train":
                assert received == 0
                assert set(reply.content) == {"metrics"}
                partition = int(context.node_config["partition-id"])
                kept[partition] = dict(context.state[OWN_MODEL].to_torch_state_dict())
            return reply

    config = configuration(tmp_path, "solo", f"strategy.spiking={spiking}", "conversion.steps=8")
    initial, data = problem(config)
    run_in_process(server_app(), Watched(), run_config=flatten(config), clients=CLIENTS)
    accuracies = []
    for k, expected in enumerate(solo.run(initial, data, ROUNDS, rate=RATE)):
        assert_equal(kept[k], expected, initial)
        accuracies.append(evaluate(expected, test_batches(Workspace(config).dataset, 256)).accuracy)
    row = read_metrics(tmp_path / "run")[-1]
    assert (row["bytes_up"], row["bytes_down"], row["replies"]) == (0, 0, CLIENTS)
    assert (row["server_ann_accuracy"], row["server_snn_accuracy"]) == (None, None)
    assert row["client_ann_accuracy_mean"] == pytest.approx(sum(accuracies) / CLIENTS, abs=1 / 360)
    assert (row["client_snn_accuracy_mean"] is not None) == spiking
    assert not any((tmp_path / "run" / name).exists() for name in (ANN_FILE, SNN_FILE))


@pytest.mark.parametrize(
    ("rounds", "by", "options"), [(1, 1e-6, []), (ROUNDS, 1e-3, []), (1, 1e-6, ["strategy.weighting=uniform"])]
)
def test_fedbn_keeps_batch_normalisation_on_the_clients(
    tmp_path: Path, rounds: int, by: float, options: list[str]
) -> None:
    """After one round to 1e-6; after more, rounding has put inputs of ReLU on the other side of zero."""
    kept: dict[int, dict[str, Tensor]] = {}

    class Watched(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            sent = set(message.content["arrays"]) if "arrays" in message.content else set()
            reply = client_app.app(message, context)
            if message.metadata.message_type == "train":
                assert set(reply.content["arrays"]) == sent
                assert not any(name.startswith("norm") for name in sent)
                kept[int(context.node_config["partition-id"])] = context.state[PRIVATE_NORMS].to_torch_state_dict()
            return reply

    everyone = ["strategy.fraction_evaluate=1", "evaluation.images=0", f"run.rounds={rounds}"]
    config = configuration(tmp_path, "fedbn", *everyone, *options)
    initial, data = problem(config)
    run_in_process(server_app(), Watched(), run_config=flatten(config), clients=CLIENTS)
    trained, received = fedbn.run(initial, data, rounds, rate=RATE, uniform=bool(options))
    shared = final(tmp_path)
    accuracies: list[list[float]] = [[], []]
    for k, models in enumerate(zip(trained, received, strict=True)):
        expected = exchangeable(models[1])
        assert expected.keys() == shared.keys() | kept[k].keys()
        for name, array in {**shared, **kept[k]}.items():
            torch.testing.assert_close(array, expected[name], rtol=1e-6, atol=by, msg=f"{k} {name}")
        for found, model in zip(accuracies, models, strict=True):
            found.append(evaluate(model, test_batches(Workspace(config).dataset, 256)).accuracy)
    assert float((kept[0]["norm1.running_mean"] - kept[1]["norm1.running_mean"]).abs().max()) > 1e-3
    row = read_metrics(tmp_path / "run")[-1]
    assert row["client_ann_accuracy_mean"] == pytest.approx(sum(accuracies[0]) / CLIENTS, abs=1 / 360)
    assert row["client_received_accuracy_mean"] == pytest.approx(sum(accuracies[1]) / CLIENTS, abs=1 / 360)
    assert (row["server_ann_accuracy"], row["server_snn_accuracy"]) == (None, None)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffolds_control_variates_are_the_papers_where_not_all_take_part(tmp_path: Path, momentum: float) -> None:
    """The server's, and each client's own, of whoever has trained; without batch normalisation, which rounds more."""
    kept: dict[int, dict[str, Tensor]] = {}

    class Watched(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = client_app.app(message, context)
            if message.metadata.message_type == "train":
                kept[int(context.node_config["partition-id"])] = context.state[OWN_CONTROL].to_torch_state_dict()
            return reply

    some = ["strategy.fraction_train=0.6", f"training.momentum={momentum}", "model.batch_norm=false"]
    config = configuration(tmp_path, "scaffold", *some)
    initial, data = problem(config)
    run_in_process(server_app(), Watched(), run_config=flatten(config), clients=CLIENTS)
    rows = read_metrics(tmp_path / "run")
    selected = {row["round"]: row["asked"]["train"] for row in rows}
    assert {len(clients) for clients in selected.values()} == {3}
    assert len(set(map(tuple, selected.values()))) > 1
    model, c, own = scaffold.run(
        copy.deepcopy(initial), data, ROUNDS, rate=RATE, server_rate=1.0, rho=momentum, selected=selected, whole=True
    )
    names = [name for name, _ in model.named_parameters()]
    for name, array in final(tmp_path).items():
        torch.testing.assert_close(array, exchangeable(model)[name], rtol=1e-6, atol=1e-6, msg=name)
    last = next(intact_checkpoints(tmp_path / "run" / CHECKPOINTS))
    control = last.base.attributes["control"].to_torch_state_dict()
    for found, expected in [(control, c), *((state, own[k]) for k, state in kept.items())]:
        for name, array in zip(names, expected, strict=True):
            torch.testing.assert_close(found[name], array, rtol=1e-4, atol=1e-5, msg=name)
    assert rows[-1]["bytes_down"] > 1.9 * 3 * sum(4 * array.numel() for array in final(tmp_path).values())
