"""Algorithms by name: Flower's classes with the configured parameters, and no option without effect."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean

from snnfl.config import Config, ConfigError, algorithms, compose, sampled_clients
from snnfl.config.options import StrategyConfig
from strategies import bases
from strategies.combinations import build_checked
from strategies.fednova import FedNova
from strategies.own import FedLec, Moon, Solo
from strategies.population import Population
from strategies.scaffold import Scaffold


def configured(name: str, *overrides: str) -> Config:
    return compose(None, [f"strategy.name={name}", "data.clients=20", *overrides])


# name: (class, parameters by default, options that set others, these)
EXPECTED = {
    "fedavg": (flower.FedAvg, {}, {}, {}),
    "fedprox": (flower.FedProx, {"proximal_mu": 0.01}, {"proximal_mu": 2}, {"proximal_mu": 2}),
    "moon": (
        Moon,
        {"contrastive_mu": 1, "temperature": 0.5},
        {"contrastive_mu": 5, "temperature": 0.1},
        {"contrastive_mu": 5, "temperature": 0.1},
    ),
    "fedlec": (
        FedLec,
        {"logit_calibration": 1, "spread_weight": 0.005, "distillation_weight": 0.1},
        {"logit_calibration": 0, "spread_weight": 0.1, "distillation_weight": 1},
        {"logit_calibration": 0, "spread_weight": 0.1, "distillation_weight": 1},
    ),
    "fedbn": (flower.FedAvg, {}, {}, {}),
    "solo": (Solo, {}, {}, {}),
    "fedavgm": (
        flower.FedAvgM,
        {"server_learning_rate": 1, "server_momentum": 0.9},
        {"server_learning_rate": 0.5, "server_momentum": 0.1},
        {"server_learning_rate": 0.5, "server_momentum": 0.1},
    ),
    "fedadam": (
        flower.FedAdam,
        {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
        {"server_learning_rate": 1, "beta_1": 0.1, "beta_2": 0.2, "tau": 0.3},
        {"eta": 1, "beta_1": 0.1, "beta_2": 0.2, "tau": 0.3},
    ),
    "fedyogi": (
        flower.FedYogi,
        {"eta": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
        {"server_learning_rate": 1, "beta_1": 0.1, "beta_2": 0.2, "tau": 0.3},
        {"eta": 1, "beta_1": 0.1, "beta_2": 0.2, "tau": 0.3},
    ),
    "fedadagrad": (
        flower.FedAdagrad,
        {"eta": 0.1, "tau": 1e-3},
        {"server_learning_rate": 1, "tau": 0.3},
        {"eta": 1, "tau": 0.3},
    ),
    "qfedavg": (
        flower.QFedAvg,
        {"q": 0.1, "client_learning_rate": 0.1, "train_loss_key": "received-loss"},
        {"q": 2},
        {"q": 2},
    ),
    "scaffold": (
        Scaffold,
        {"server_learning_rate": 1, "clients": 20},
        {"server_learning_rate": 0.5},
        {"server_learning_rate": 0.5},
    ),
    "fednova": (FedNova, {"momentum": 0.9}, {}, {}),
    "fedmedian": (flower.FedMedian, {}, {}, {}),
    "fedtrimmedavg": (flower.FedTrimmedAvg, {"beta": 0.2}, {"trimmed_fraction": 0.4}, {"beta": 0.4}),
    "krum": (
        flower.Krum,
        {"num_malicious_nodes": 1, "num_nodes_to_select": 1},
        {"malicious_clients": 3},
        {"num_malicious_nodes": 3},
    ),
    "multikrum": (
        flower.MultiKrum,
        {"num_malicious_nodes": 1, "num_nodes_to_select": 17},
        {"malicious_clients": 3, "selected_clients": 4},
        {"num_malicious_nodes": 3, "num_nodes_to_select": 4},
    ),
    "bulyan": (flower.Bulyan, {"num_malicious_nodes": 1}, {"malicious_clients": 4}, {"num_malicious_nodes": 4}),
}


def test_every_strategy_of_flower_is_there_but_those_for_trees() -> None:
    made = {type(bases.build_base(configured(name))) for name in bases.names()}
    ours = {name for cls in made for name in (base.__name__ for base in cls.__mro__)}
    flowers = {n for n in flower.__all__ if isinstance(getattr(flower, n), type)}
    abstract = {"Strategy", "Result"}
    assert {name for name in flowers - ours if "DifferentialPrivacy" not in name} <= abstract | {
        "FedXgbBagging",
        "FedXgbCyclic",
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_a_name_gives_the_class_and_its_parameters(name: str) -> None:
    kind, default, changes, changed = EXPECTED[name]
    for overrides, expected in ((), default), ([f"strategy.{k}={v}" for k, v in changes.items()], changed):
        base = bases.build_base(configured(name, *overrides, "strategy.fraction_train=1"))
        assert isinstance(base, kind)
        assert {key: getattr(base, key) for key in expected} == pytest.approx(expected)
        # One client is enough: how many must be there is the population's affair.
        assert (base.min_train_nodes, base.min_available_nodes, base.min_evaluate_nodes) == (1, 1, 0)
    partial = bases.build_base(configured(name, "strategy.fraction_train=0.6", "strategy.fraction_evaluate=0.2"))
    assert (partial.fraction_train, partial.fraction_evaluate) == pytest.approx((0.6, 0.2), rel=1e-14)
    assert partial.min_evaluate_nodes == 1


def test_what_is_known_of_the_clients_side_is_of_algorithms_that_there_are() -> None:
    assert algorithms._SIDES.keys() <= set(bases.names())


def test_the_names_are_those_of_the_options_documentation() -> None:
    doc = StrategyConfig.__dataclass_fields__["name"].metadata["doc"]
    assert sorted(re.findall(r"\w+", doc.partition("(")[0].replace(" or ", ", "))) == sorted(bases.names())
    assert sorted(EXPECTED) == sorted(bases.names())


def test_the_table_of_the_documentation_holds_names_and_defaults() -> None:
    text = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text.partition("## Differential")[0], re.MULTILINE))
    assert sorted(rows) == sorted(bases.names())
    for name in ("fedprox", "moon", "fedlec", "fedavgm", "fedadam", "fedadagrad", "qfedavg", "fedtrimmedavg"):
        for parameter, default in bases.find(name).defaults.items():
            assert f"`{parameter}` {default:g}" in rows[name]


PARAMETERS = sorted({name for _, _, changes, _ in EXPECTED.values() for name in changes})


@pytest.mark.parametrize("name", bases.names())
def test_a_parameter_that_has_no_effect_is_refused(name: str) -> None:
    for parameter in PARAMETERS:
        config = configured(name, f"strategy.{parameter}={2 if parameter.endswith('clients') else 0.3}")
        if parameter in EXPECTED[name][2]:
            bases.build_base(config)
            continue
        users = ", ".join(sorted(other for other in EXPECTED if parameter in EXPECTED[other][2]))
        with pytest.raises(
            ConfigError, match=rf"strategy.{parameter}=.*={name} doesn't use it, only {users}; set null"
        ):
            bases.build_base(config)


@pytest.mark.parametrize(
    ("name", "overrides", "needed"),
    [
        ("fedavg", [], 1),
        ("fedmedian", [], 3),
        ("fedtrimmedavg", [], 5),
        ("fedtrimmedavg", ["strategy.trimmed_fraction=0.15"], 7),
        ("krum", [], 5),
        ("multikrum", ["strategy.malicious_clients=3"], 9),
        ("bulyan", [], 7),
        ("bulyan", ["strategy.malicious_clients=2"], 11),
    ],
)
def test_quorum(name: str, overrides: list[str], needed: int) -> None:
    assert bases.quorum(configured(name, *overrides)) == needed


def test_what_multikrum_selects_fits_the_round() -> None:
    with pytest.raises(ConfigError, match=r"strategy.selected_clients=11: expected at most the 10 clients of a round"):
        bases.build_base(configured("multikrum", "strategy.selected_clients=11", "strategy.fraction_train=0.5"))


def test_an_unknown_name_answers_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"strategy.name=fedavgg: unknown strategy; did you mean 'fedavgm?'\?"):
        bases.build_base(configured("fedavgg"))
    with pytest.raises(ConfigError) as error:
        bases.find("zzz")
    assert all(name in str(error.value) for name in bases.names())


@pytest.mark.parametrize("name", ["fedxgbbagging", "FedXgbCyclic"])
def test_a_strategy_for_trees_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^strategy.name={name}: .* decision trees, not a network$"):
        bases.find(name)


@pytest.mark.usefixtures("own_registries")
def test_a_registered_strategy_is_known_and_a_taken_name_refused() -> None:
    @bases.register("mine", "Mine", q=0.5)
    def mine(config: Config, q: float) -> flower.FedAvg:
        return flower.FedAvg(fraction_train=config.strategy.fraction_train * q)

    assert "mine" in bases.names()
    assert bases.find("mine").title == "Mine"
    assert bases.build_base(configured("mine")).fraction_train == 0.5
    assert bases.build_base(configured("mine", "strategy.q=0.1")).fraction_train == 0.1
    with pytest.raises(ValueError, match="'mine' is already registered"):
        bases.register("mine")(mine)


@pytest.mark.parametrize("name", [name for name in bases.names() if name != "solo"])  # which selects all
def test_as_many_clients_are_selected_as_the_fraction_says(scripted: Callable[..., Any], name: str) -> None:
    """Products such as 0.29 times 100 lie below the whole number as doubles."""
    for clients, fraction, expected in ((100, 0.29, 29), (50, 0.58, 29), (40, 0.4, 16), (25, 0.46, 11)):
        options = [f"data.clients={clients}", f"strategy.fraction_train={fraction}"]
        plain = ["strategy.spiking=false"] if name == "fedbn" else []
        config = configured(name, *options, f"strategy.fraction_evaluate={fraction}", *plain)
        base = build_checked(config)
        grid = Population(scripted(range(clients), lambda message: message), partitions={n: n for n in range(clients)})
        assert sampled_clients(config) == expected
        assert len(list(base.configure_train(1, ArrayRecord(), ConfigRecord(), grid))) == expected
        assert len(list(base.configure_evaluate(1, ArrayRecord(), ConfigRecord(), grid))) == expected


def test_a_trimmed_mean_cuts_as_many_as_its_fraction_says() -> None:
    """0.29 of 100 values are 29 at either end."""
    base = bases.build_base(configured("fedtrimmedavg", "strategy.trimmed_fraction=0.29"))
    values = np.arange(100.0)
    values[71:] = 1e6
    values[28] = -1e6  # the 29th from below
    assert trim_mean(np.sort(values), base.beta) == pytest.approx(np.sort(values)[29:71].mean())
