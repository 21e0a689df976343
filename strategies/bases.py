"""Base strategies by name: Flower's own, to be wrapped by :class:`Guarded` or :class:`Spiking`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from flwr.serverapp.strategy import FedAvg, Strategy

from snnfl.config import ConfigError, StrategyConfig, nearest

Builder: TypeAlias = Callable[[StrategyConfig], Strategy]

_BUILDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Make a builder known as ``strategy.name=NAME``.

    Raises:
        ValueError: If the name is taken.
    """

    def decorate(builder: Builder) -> Builder:
        if name in _BUILDERS:
            raise ValueError(f"strategy {name!r} is already registered")
        _BUILDERS[name] = builder
        return builder

    return decorate


def names() -> tuple[str, ...]:
    """Return the known names, sorted."""
    return tuple(sorted(_BUILDERS))


def check_strategy(name: str) -> None:
    """Check a name.

    Raises:
        ConfigError: If no strategy has it, with the nearest that is known.
    """
    if name not in _BUILDERS:
        raise ConfigError(f"strategy.name={name}: unknown strategy{nearest(name, names())}")


def build_base(config: StrategyConfig) -> Strategy:
    """Build the base strategy of a configuration.

    Raises:
        ConfigError: If its name is unknown.
    """
    check_strategy(config.name)
    return _BUILDERS[config.name](config)


@register("fedavg")
def fedavg(config: StrategyConfig) -> Strategy:
    """Federated averaging (McMahan et al. 2017), by Flower."""
    return FedAvg(
        fraction_train=config.fraction_train,
        fraction_evaluate=config.fraction_evaluate,
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=1,
    )
