"""Which options make no sense together, said before anything runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flwr.serverapp.strategy import Strategy

from snnfl.config import OWN, Config, ConfigError, client_side, converts, keeps_biases, sampled_clients
from snnfl.masking import FEWEST_CLIENTS
from strategies.bases import build_base, find, parameters, quorum
from strategies.private_combinations import privacy_mistakes

logger = logging.getLogger(__name__)


def build_checked(config: Config) -> Strategy:
    """Build the strategy of a configuration, differential privacy included, after checking that its options agree.

    Raises:
        ConfigError: If they don't; with the reason, in one line.
    """
    checks = (
        _solo_mistakes,
        _norm_mistakes,
        _control_mistakes,
        _training_mistakes,
        _count_mistakes,
        privacy_mistakes,
        _secure_mistakes,
    )
    for mistake in (mistake for check in checks for mistake in check(config)):
        raise ConfigError(mistake)
    for line in _privacy_warnings(config):
        logger.warning(line)
    if config.privacy.mechanism == "central":  # it draws the clients itself, and its base strategy takes them all
        config = replace(config, strategy=replace(config.strategy, fraction_train=1.0))
    return build_base(config)


def network_rule(config: Config) -> dict[str, Any]:
    """Return how :class:`~strategies.spiking.Spiking` is to make the server's spiking network.

    It is the aggregate of the clients' networks only where that is what the strategy makes of their ANNs, too: where
    a step is between, it follows the aggregate.
    """
    kind = find(config.strategy.name).kind
    return {
        "network_base": build_base(config) if kind == "robust" else None,
        "follows": kind == "step" or config.privacy.mechanism == "distributed",
    }


def minimum_replies(config: Config) -> int:
    """Return below how many valid replies a round keeps the old weights."""
    return max(config.strategy.minimum_replies, quorum(config))


def _solo_mistakes(config: Config) -> Iterator[str]:
    strategy = config.strategy
    if client_side(config).uploads:
        return
    for key, wanted, reason in (
        ("fraction_train", 1.0, "no server selects among clients that train alone"),
        ("participation", 1.0, "a client that doesn't communicate cannot fail to"),
        ("fraction_evaluate", 0.0, "clients receive no model to evaluate"),
        ("bias_back", False, "nothing comes back from the server"),
    ):
        if (value := getattr(strategy, key)) != wanted:
            yield f"strategy.{key}={value}: makes no sense with strategy.name=solo, for {reason}; set {wanted}"
    if config.audit.record:
        yield (
            "audit.record=True: with strategy.name=solo no weight leaves a client, so there is nothing to attack; set "
            "False"
        )


def _norm_mistakes(config: Config) -> Iterator[str]:
    if not client_side(config).own_normalisation:
        return
    if converts(config):
        yield (
            "strategy.spiking=True: makes no sense with strategy.name=fedbn, for an S-update's weights are folded with "
            "batch normalisation, and the server needs each client's to recover them; set False"
        )
    if config.audit.record:
        yield (
            "audit.record=True: strategy.name=fedbn keeps batch normalisation on the clients, and no attack here does "
            "without; set False"
        )


def _control_mistakes(config: Config) -> Iterator[str]:
    if not client_side(config).control_variates:
        return
    if converts(config) and config.strategy.bias_back:
        yield (
            "strategy.bias_back=True: strategy.name=scaffold would send the control variates of biases, which tell the "
            "biases that conversion hides; set False"
        )
    if config.audit.record:
        yield (
            "audit.record=True: strategy.name=scaffold corrects the clients' gradients, which no attack here reckons "
            "with; set False"
        )


def _training_mistakes(config: Config) -> Iterator[str]:
    """Yield what of the local training an algorithm doesn't reckon with."""
    name = config.strategy.name
    refused: dict[str, dict[str, tuple[Any, str]]] = {
        "optimizer": {
            "scaffold": ("sgd", "reckons gradients back from the steps of SGD"),
            "fednova": ("sgd", "divides by what the gradients weigh in the steps of SGD"),
        },
        "clip_norm": {"scaffold": (None, "reckons gradients back from what a client changed, which isn't their sum")},
        "loss": {"fedlec": ("readout", "has a loss of its own, of what is read out")},
        "micro_batch": {"fedlec": (None, "compares the samples of a whole batch")},
    }
    for option, users in refused.items():
        wanted, reason = users.get(name, (None, ""))
        value = getattr(config.training, option)
        if name in users and value != wanted:
            shown = "null" if wanted is None else wanted
            yield f"training.{option}={value}: strategy.name={name} {reason}; set {shown}"


def _count_mistakes(config: Config) -> Iterator[str]:
    needed, sampled = quorum(config), sampled_clients(config)
    if needed > sampled:
        given = ", ".join(f"{name}={value}" for name, value in parameters(config).items() if value is not None)
        yield (
            f"strategy.name={config.strategy.name}: needs {needed} updates per round{f' with {given}' if given else ''}"
            f", but {sampled} clients are selected; raise data.clients or strategy.fraction_train"
        )


def _secure_mistakes(config: Config) -> Iterator[str]:
    """Yield what needs each client's update, where the server is to learn their sum alone."""
    strategy, mechanism = config.strategy, config.privacy.mechanism
    if not strategy.secure_aggregation:
        return
    secure = "strategy.secure_aggregation=true"
    if (reason := find(strategy.name).needs_individual) is not None:
        yield f"{secure}: strategy.name={strategy.name} must see each update: {reason}; choose another, or set false"
    for key, value, none, reason in (
        ("quantization.uploads", config.quantization.uploads, 0, "codes with scales of their own don't add up"),
        ("detection.detectors", list(config.detection.detectors), [], "detectors judge each update"),
        ("audit.clients", list(config.audit.clients), [], "no client's update is recorded by itself"),
    ):
        if value != none:
            yield f"{key}={value}: {reason}, and with {secure} the server knows their sum alone; set {none}"
    if mechanism == "central":
        yield (
            f"privacy.mechanism=central: the server cannot clip updates that {secure} hides from it; set distributed, "
            "where clients clip and add their shares of the noise"
        )
    if strategy.fraction_evaluate and (keeps_biases(config) or client_side(config).own_normalisation):
        yield (
            f"strategy.fraction_evaluate={strategy.fraction_evaluate}: a client's answer depends on arrays that never "
            f"leave it, and nobody masks it with {secure}; set 0"
        )
    if (sampled := sampled_clients(config)) < FEWEST_CLIENTS:
        yield f"{secure}: {sampled} clients are selected per round, and a sum hides nothing of fewer than 3; raise them"


def _privacy_warnings(config: Config) -> Iterator[str]:
    privacy = config.privacy
    if privacy.mechanism == "none":
        return
    yield (
        f"privacy.mechanism={privacy.mechanism}: epsilon is of the networks that are released; what metrics.jsonl "
        "tells of clients' losses and accuracies, and who replied, is not protected: keep the run's folder to yourself"
    )
    if config.strategy.fraction_evaluate and config.data.source == OWN:
        yield (
            f"strategy.fraction_evaluate={config.strategy.fraction_evaluate}: nodes test on data of their own, and "
            "what they answer is not protected"
        )
