"""Base strategies by name."""

from __future__ import annotations

import pytest
from flwr.serverapp.strategy import FedAvg

from snnfl.config import ConfigError, StrategyConfig
from strategies import bases


def test_fedavg_is_flowers_and_takes_the_fractions() -> None:
    base = bases.build_base(StrategyConfig(fraction_train=0.3, fraction_evaluate=0.2))
    assert type(base) is FedAvg
    assert (base.fraction_train, base.fraction_evaluate) == (0.3, 0.2)
    # One client is enough: how many must be there is the cohort's affair.
    assert (base.min_train_nodes, base.min_evaluate_nodes, base.min_available_nodes) == (1, 1, 1)
    assert bases.build_base(StrategyConfig()).min_evaluate_nodes == 0


def test_an_unknown_name_answers_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"strategy.name=fedavgg: unknown strategy; did you mean 'fedavg'\?"):
        bases.build_base(StrategyConfig(name="fedavgg"))
    with pytest.raises(ConfigError, match=r"known: .*fedavg"):
        bases.check_strategy("zzz")


def test_a_registered_strategy_is_known_and_a_taken_name_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "_BUILDERS", dict(bases._BUILDERS))

    @bases.register("mine")
    def mine(config: StrategyConfig) -> FedAvg:
        return FedAvg(fraction_train=config.fraction_train / 2)

    assert bases.names() == ("fedavg", "mine")
    assert bases.build_base(StrategyConfig(name="mine", fraction_train=0.5)).fraction_train == 0.25
    with pytest.raises(ValueError, match="'mine' is already registered"):
        bases.register("mine")(mine)
