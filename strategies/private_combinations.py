"""Which options differential privacy makes no sense with, or proves nothing with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from snnfl.config import OWN, Config, ConfigError, converts
from snnfl.privacy.spending import adaptive_noise
from strategies.bases import find

_USERS: dict[str, tuple[str, ...]] = {
    "clipping_norm": ("central", "distributed", "example", "local"),
    "noise_multiplier": ("central", "distributed", "example", "local"),
    "target_epsilon": ("central", "distributed", "example", "local"),
    "budget": ("central", "distributed", "example", "local"),
    "target_clipped_quantile": ("central",),
    "clip_norm_lr": ("central",),
    "clipped_count_stddev": ("central",),
    "canaries": ("central",),
    "noise_seed": ("central", "distributed", "example", "local"),
}
"""Mechanisms that use an option."""

_AVERAGES = ("fedavg", "fedprox", "moon", "fedlec", "fedbn", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
"""Algorithms that take one mean for all that a round tells."""

_PER_SAMPLE = (
    "fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedmedian", "fedtrimmedavg", "krum",
    "multikrum", "bulyan",
)  # fmt: skip
"""Algorithms whose local objective is a mean over samples: not of their classes' numbers, nor of an earlier model."""


def privacy_mistakes(config: Config) -> Iterator[str]:
    """Yield what in the options of differential privacy contradicts the rest, a line each."""
    privacy, mechanism = config.privacy, config.privacy.mechanism
    for name, users in _USERS.items():
        if (value := getattr(privacy, name)) not in (None, 0) and mechanism not in users:
            named = f"only privacy.mechanism={' or '.join(users)} does"
            yield f"privacy.{name}={value}: privacy.mechanism={mechanism} doesn't use it, {named}; leave it out"
    if mechanism == "none":
        return
    yield from _noise_mistakes(config)
    yield from _algorithm_mistakes(config)
    if mechanism == "central":
        yield from _central_mistakes(config)
    if mechanism == "distributed" and not config.strategy.secure_aggregation:
        yield (
            "privacy.mechanism=distributed: without masks the server sees each update with a share of the noise; set "
            "strategy.secure_aggregation=true, or take local"
        )
    if mechanism == "distributed" and config.poisoning.attack != "none":
        yield f"poisoning.attack={config.poisoning.attack}: clients of privacy.mechanism=distributed send whole numbers"
    if mechanism == "example":
        yield from _example_mistakes(config)


def _noise_mistakes(config: Config) -> Iterator[str]:
    privacy = config.privacy
    if privacy.target_epsilon is not None and privacy.noise_multiplier is not None:
        yield (
            f"privacy.target_epsilon={privacy.target_epsilon}: finds the noise, and privacy.noise_multiplier="
            f"{privacy.noise_multiplier} is one; leave one of them out"
        )
    if privacy.adaptive:
        expected = config.strategy.fraction_train * config.data.clients
        if privacy.noise_multiplier is not None or privacy.target_epsilon is None:
            noise = 1.0 if privacy.noise_multiplier is None else privacy.noise_multiplier
            try:
                adaptive_noise(noise, privacy.clipped_count_stddev or expected / 20)
            except ConfigError as error:
                yield str(error)
        return
    for name in ("clip_norm_lr", "clipped_count_stddev"):
        if (value := getattr(privacy, name)) is not None:
            yield f"privacy.{name}={value}: only adaptive clipping uses it; set privacy.target_clipped_quantile"


def _algorithm_mistakes(config: Config) -> Iterator[str]:
    name, mechanism = config.strategy.name, config.privacy.mechanism
    which = f"privacy.mechanism={mechanism}: strategy.name={name}"
    reasons = {
        "solo": "sends no update to protect",
        "scaffold": "sends control variates too, which nobody clips or noises",
        "qfedavg": "weighs by losses that clients report, which nobody noises",
        "fednova": "divides single updates by their steps, which a clipped sum no longer tells",
    }
    if name in reasons:
        yield f"{which} {reasons[name]}; set none"
    elif mechanism in ("central", "distributed") and name not in _AVERAGES:
        rule = "is a rule of single updates" if find(name).kind == "robust" else "isn't known to need a mean alone"
        yield f"{which} {rule}, and only their noised sum is released; take one of {', '.join(_AVERAGES)}"


def _central_mistakes(config: Config) -> Iterator[str]:
    for name, wanted, reason in (
        ("participation", 1.0, "who takes part is drawn with probability strategy.fraction_train, and that is counted"),
        ("minimum_replies", 1, "whether a round has enough replies would tell of single clients"),
    ):
        if (value := getattr(config.strategy, name)) != wanted:
            yield f"strategy.{name}={value}: with privacy.mechanism=central {reason}; set {wanted}"


def _example_mistakes(config: Config) -> Iterator[str]:
    refused: list[tuple[bool, str, Any, str]] = [
        (
            converts(config) and config.conversion.data == "private",
            "strategy.spiking",
            True,
            "thresholds and biases are calibrated on private samples outside the clipped gradients; set False, or "
            "conversion.data=synthetic, or take privacy.mechanism=central, whose vector holds them",
        ),
        (
            config.model.batch_norm,
            "model.batch_norm",
            True,
            "batch normalisation mixes the samples of a batch, so that no gradient is one sample's; set False, "
            "and in lenet5 and convnet of clients that don't convert model.group_norm=2 if you miss it",
        ),
        (
            config.strategy.name not in _PER_SAMPLE,
            "strategy.name",
            config.strategy.name,
            f"its objective isn't known to be a mean over samples; take one of {', '.join(_PER_SAMPLE)}",
        ),
        (
            config.training.clip_norm is not None,
            "training.clip_norm",
            config.training.clip_norm,
            "each sample's gradient is clipped to privacy.clipping_norm; leave it out",
        ),
        (
            config.training.micro_batch is not None,
            "training.micro_batch",
            config.training.micro_batch,
            "gradients are computed sample by sample; leave it out",
        ),
        (
            config.data.source == OWN,
            "data.source",
            config.data.source,
            "the server doesn't know how many samples nodes have, which decides what a step spends; take local",
        ),
    ]
    for wrong, key, value, reason in refused:
        if wrong:
            yield f"{key}={value}: with privacy.mechanism=example {reason}"
