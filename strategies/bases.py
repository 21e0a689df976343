"""Federated algorithms by name: Flower's strategies and our own, to be wrapped by :class:`Guarded` or :class:`Spiking`.

docs/strategies.md lists names, papers, parameters and what they mean in an S-run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from flwr.serverapp.strategy import Bulyan, FedMedian, FedProx, FedTrimmedAvg, Krum, MultiKrum, Strategy

from snnfl.config import Config, ConfigError, client_side, exactly, sampled_clients
from snnfl.protocol import RECEIVED_LOSS
from snnfl.registry import Registry
from strategies.fednova import FedNova
from strategies.optimisers import FairAvg, ServerAdagrad, ServerAdam, ServerMomentum, ServerYogi
from strategies.own import FedAvg, FedLec, Moon, Solo
from strategies.scaffold import Scaffold
from strategies.weighting import WEIGHINGS, Weighing, by_loss, uniform

Builder: TypeAlias = Callable[..., Strategy]
"""``(config, **parameters) -> strategy``: the parameters are those that it was registered with, as configured."""

Quorum: TypeAlias = Callable[[Mapping[str, Any]], int]

Kind: TypeAlias = Literal["mean", "step", "robust", "none"]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What is known of an algorithm.

    Attributes:
        title: What the papers call it.
        build: Makes the strategy.
        defaults: Its parameters, which are fields of :class:`~snnfl.config.StrategyConfig`, with their defaults.
        quorum: How many updates it needs to do what it promises, given its parameters.
        kind: What it makes of the updates: their mean; a step of its own, as an optimiser does; an aggregate that
            withstands updates that lie; or nothing. It decides what becomes of the server's spiking network.
        weighs: Whether the weights of ``strategy.weighting`` enter it.
        needs_individual: Why it must see each update; ``None`` if their weighted mean is enough.
    """

    title: str
    build: Builder
    defaults: Mapping[str, float | None]
    quorum: Quorum
    kind: Kind
    weighs: bool
    needs_individual: str | None


STRATEGIES = Registry[Algorithm]("strategy", "strategy.name")


def register(
    name: str,
    title: str | None = None,
    *,
    quorum: Quorum = lambda p: 1,
    kind: Kind = "step",
    weighs: bool = False,
    needs_individual: str | None = "it doesn't say that the weighted mean of the updates is enough for it",
    **defaults: Any,
) -> Callable[[Builder], Builder]:
    """Make a builder known as ``strategy.name=NAME``; the other arguments are those of :class:`Algorithm`.

    Raises:
        ValueError: If the name is taken.
    """

    def decorate(builder: Builder) -> Builder:
        algorithm = Algorithm(
            title=title or name,
            build=builder,
            defaults=defaults,
            quorum=quorum,
            kind=kind,
            weighs=weighs,
            needs_individual={"mean": None, "robust": "it compares the updates with each other"}.get(
                kind, needs_individual
            ),
        )
        STRATEGIES.add(name, algorithm, home=builder.__module__)
        return builder

    return decorate


def names() -> tuple[str, ...]:
    """Return the known names, sorted."""
    return STRATEGIES.names()


def find(name: str) -> Algorithm:
    """Find an algorithm by its name.

    Raises:
        ConfigError: If none has it, with the nearest that is known, or it makes no sense for a network.
    """
    if name.lower().startswith("fedxgb"):
        raise ConfigError(f"strategy.name={name}: Flower's FedXgb strategies pass on decision trees, not a network")
    return STRATEGIES.find(name)


def parameters(config: Config) -> dict[str, Any]:
    """Return the configured algorithm's parameters: what is set, else its defaults.

    Raises:
        ConfigError: If its name is unknown, or a parameter or a weighting is set that it doesn't use.
    """
    algorithm = find(config.strategy.name)
    if (weighting := config.strategy.weighting) != "examples" and not algorithm.weighs:
        users = ", ".join(sorted(known for known, other in STRATEGIES.items.items() if other.weighs))
        raise ConfigError(
            f"strategy.weighting={weighting}: strategy.name={config.strategy.name} doesn't use it, only {users}; set "
            "examples"
        )
    for name in sorted(
        {name for other in STRATEGIES.items.values() for name in other.defaults} - algorithm.defaults.keys()
    ):
        if (value := getattr(config.strategy, name)) is not None:
            users = ", ".join(sorted(known for known, other in STRATEGIES.items.items() if name in other.defaults))
            raise ConfigError(
                f"strategy.{name}={value}: strategy.name={config.strategy.name} doesn't use it, only {users}; set null"
            )
    given = {name: getattr(config.strategy, name) for name in algorithm.defaults}
    return {name: default if given[name] is None else given[name] for name, default in algorithm.defaults.items()}


def quorum(config: Config) -> int:
    """Return how many updates the algorithm needs to do what it promises.

    Krum withstands f of n clients if ``n >= 2f + 3`` (Blanchard et al. 2017), Bulyan if ``n >= 4f + 3`` (El Mhamdi et
    al. 2018); a median needs three values, and a trimmed mean as many that one is cut off at either end.
    """
    return find(config.strategy.name).quorum(parameters(config))


def weighing(config: Config) -> Weighing:
    """Return what an update counts in the averages that the algorithm takes, those of the spiking network included.

    Raises:
        ConfigError: As :func:`parameters`.
    """
    values = parameters(config)
    if client_side(config).control_variates:  # the average is that of the control variates
        return uniform
    return by_loss(values["q"]) if client_side(config).received_loss else WEIGHINGS[config.strategy.weighting]


def build_base(config: Config) -> Strategy:
    """Build the strategy of a configuration, without differential privacy.

    Raises:
        ConfigError: As :func:`parameters`.
    """
    name = config.strategy.name
    return STRATEGIES.made(name, lambda: find(name).build(config, **parameters(config)), Strategy)


def common(config: Config) -> dict[str, Any]:
    """Return what every strategy of Flower is built with.

    One client is enough for it: how many must be there is the population's affair.
    """
    return {
        "fraction_train": exactly(config.strategy.fraction_train),
        "fraction_evaluate": exactly(config.strategy.fraction_evaluate),
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
    }


@register("fedavg", "FedAvg", kind="mean", weighs=True)
def fedavg(config: Config) -> Strategy:
    """Federated averaging (McMahan et al. 2017)."""
    return FedAvg(**common(config))


@register("fedprox", "FedProx", kind="mean", weighs=True, proximal_mu=0.01)
def fedprox(config: Config, proximal_mu: float) -> Strategy:
    """FedAvg with a proximal term in the local objective (Li et al. 2020)."""
    return FedProx(**common(config), proximal_mu=proximal_mu)


@register("moon", "MOON", kind="mean", weighs=True, contrastive_mu=1.0, temperature=0.5)
def moon(config: Config, contrastive_mu: float, temperature: float) -> Strategy:
    """FedAvg with a model-contrastive term in the local objective (Li et al. 2021)."""
    return Moon(**common(config), contrastive_mu=contrastive_mu, temperature=temperature)


@register(
    "fedlec",
    "FedLEC",
    kind="mean",
    weighs=True,
    logit_calibration=1.0,
    spread_weight=0.005,
    distillation_weight=0.1,
)
def fedlec(config: Config, **weights: float) -> Strategy:
    """FedAvg with a local objective for skewed labels (Yu et al. 2024)."""
    return FedLec(**common(config), **weights)


@register("fedbn", "FedBN", kind="mean", weighs=True)
def fedbn(config: Config) -> Strategy:
    """FedAvg of all but batch normalisation, which clients keep (Li et al. 2021)."""
    return FedAvg(**common(config))


@register("solo", "SOLO", kind="none", needs_individual="its clients send no update to hide")
def solo(config: Config) -> Strategy:
    """Each client for itself (SNFL section 5.2)."""
    return Solo(**common(config))


@register("fedavgm", "FedAvgM", weighs=True, needs_individual=None, server_learning_rate=1.0, server_momentum=0.9)
def fedavgm(config: Config, server_learning_rate: float, server_momentum: float) -> Strategy:
    """Server momentum (Hsu et al. 2019)."""
    return ServerMomentum(**common(config), server_learning_rate=server_learning_rate, server_momentum=server_momentum)


@register(
    "fedadam",
    "FedAdam",
    weighs=True,
    needs_individual=None,
    server_learning_rate=0.1,
    beta_1=0.9,
    beta_2=0.99,
    tau=1e-3,
)
def fedadam(config: Config, server_learning_rate: float, **moments: Any) -> Strategy:
    """Adam on the server (Reddi et al. 2021, algorithm 2)."""
    return ServerAdam(**common(config), eta=server_learning_rate, **moments)


@register(
    "fedyogi",
    "FedYogi",
    weighs=True,
    needs_individual=None,
    server_learning_rate=0.01,
    beta_1=0.9,
    beta_2=0.99,
    tau=1e-3,
)
def fedyogi(config: Config, server_learning_rate: float, **moments: Any) -> Strategy:
    """Yogi on the server (Reddi et al. 2021, algorithm 2)."""
    return ServerYogi(**common(config), eta=server_learning_rate, **moments)


@register("fedadagrad", "FedAdagrad", weighs=True, needs_individual=None, server_learning_rate=0.1, tau=1e-3)
def fedadagrad(config: Config, server_learning_rate: float, tau: float) -> Strategy:
    """Adagrad on the server (Reddi et al. 2021, algorithm 2)."""
    return ServerAdagrad(**common(config), eta=server_learning_rate, tau=tau)


@register("qfedavg", "q-FedAvg", needs_individual="it weighs each update by its loss and its norm", q=0.1)
def qfedavg(config: Config, q: float) -> Strategy:
    """Weights by loss, for fairness (Li et al. 2020, algorithm 2); 1/L is the learning rate before its schedule."""
    rate = config.training.learning_rate
    return FairAvg(client_learning_rate=rate, q=q, train_loss_key=RECEIVED_LOSS, **common(config))


@register(
    "scaffold",
    "SCAFFOLD",
    needs_individual="control variates travel beside the updates, and nobody masks them",
    server_learning_rate=1.0,
)
def scaffold(config: Config, server_learning_rate: float) -> Strategy:
    """Control variates against the drift of clients (Karimireddy et al. 2020, algorithm 1, option II)."""
    return Scaffold(**common(config), clients=config.data.clients, server_learning_rate=server_learning_rate)


@register("fednova", "FedNova", weighs=True, needs_individual="it divides each update by its client's number of steps")
def fednova(config: Config) -> Strategy:
    """Changes per local step (Wang et al. 2020)."""
    return FedNova(**common(config), momentum=config.training.momentum)


@register("fedmedian", "FedMedian", quorum=lambda p: 3, kind="robust")
def fedmedian(config: Config) -> Strategy:
    """Coordinate-wise median (Yin et al. 2018)."""
    return FedMedian(**common(config))


@register(
    "fedtrimmedavg",
    "FedTrimmedAvg",
    quorum=lambda p: math.ceil(1 / exactly(p["trimmed_fraction"])),
    kind="robust",
    trimmed_fraction=0.2,
)
def fedtrimmedavg(config: Config, trimmed_fraction: float) -> Strategy:
    """Coordinate-wise trimmed mean (Yin et al. 2018)."""
    return FedTrimmedAvg(**common(config), beta=exactly(trimmed_fraction))


@register("krum", "Krum", quorum=lambda p: 2 * p["malicious_clients"] + 3, kind="robust", malicious_clients=1)
def krum(config: Config, malicious_clients: int) -> Strategy:
    """The update that is closest to its neighbours (Blanchard et al. 2017)."""
    return Krum(**common(config), num_malicious_nodes=malicious_clients)


@register(
    "multikrum",
    "Multi-Krum",
    quorum=lambda p: 2 * p["malicious_clients"] + 3,
    kind="robust",
    weighs=True,
    malicious_clients=1,
    selected_clients=None,
)
def multikrum(config: Config, malicious_clients: int, selected_clients: int | None) -> Strategy:
    """The mean of the updates that are closest to their neighbours (Blanchard et al. 2017).

    Raises:
        ConfigError: If more updates are to be averaged than clients are selected.
    """
    sampled = sampled_clients(config)
    if selected_clients is not None and selected_clients > sampled:
        raise ConfigError(
            f"strategy.selected_clients={selected_clients}: expected at most the {sampled} clients of a round"
        )
    chosen = selected_clients or max(1, sampled - malicious_clients - 2)
    return MultiKrum(**common(config), num_malicious_nodes=malicious_clients, num_nodes_to_select=chosen)


@register("bulyan", "Bulyan", quorum=lambda p: 4 * p["malicious_clients"] + 3, kind="robust", malicious_clients=1)
def bulyan(config: Config, malicious_clients: int) -> Strategy:
    """Multi-Krum, then a trimmed mean about the median (El Mhamdi et al. 2018)."""
    return Bulyan(**common(config), num_malicious_nodes=malicious_clients)
