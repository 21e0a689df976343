"""Which options are out of range or contradict each other, within a section and across sections."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snnfl.config.algorithms import client_side
from snnfl.config.declaration import ConfigError, check_option
from snnfl.config.kinds import converts, spikes_natively
from snnfl.config.modelling import TrainingConfig
from snnfl.config.options import Config, options, value_of
from snnfl.config.own_data import own_data_mistakes

_ENGINE_OF = {
    "engine.cpus_per_client": "ray",
    "engine.gpus_per_client": "ray",
    "engine.address": "ray",
    "engine.connection": "deployment",
}
SPIKING = (
    "neurons", "time_steps", "beta", "learn_beta", "threshold", "learn_threshold", "reset", "reset_delay", "surrogate",
    "surrogate_slope", "encoding", "readout", "output_fires", "threshold_norm",
)  # fmt: skip
"""Options of the model that only networks which are trained as spiking ones use."""

_IN_TRAINING = ("weights", "activations", "potentials")
"""What is quantised in every forward pass."""

_EVENT_TRIGGERS = ("event_moving", "event_static", "event_temporal")
BUILT_IN = ("badnets", "blended", "distributed", *_EVENT_TRIGGERS, "label_flip", "model_replacement")
"""Poisonings whose options are known here; one of a plug-in may use any."""

FINEST = 0.01
"""Largest ``strategy.secure_range`` within which sums keep the changes of LOKI's weights."""

_ATTACKS_OF = {
    "source": ("label_flip",),
    "trigger_size": ("badnets", "distributed", *_EVENT_TRIGGERS, "model_replacement"),
    "polarity": _EVENT_TRIGGERS,
    "strength": ("blended", *_EVENT_TRIGGERS),
    "scale": ("model_replacement",),
    "scale_ann": ("model_replacement",),
}


def validate(config: Config) -> None:
    """Check every option's range, and that the options agree.

    Raises:
        ConfigError: Naming the key, the value and what is expected.
    """
    for key, item, kind in options():
        check_option(key, value_of(config, key), item, kind)
    for mistake in mistakes(config):
        raise ConfigError(mistake)


def mistakes(config: Config) -> Iterator[str]:
    """Yield what makes no sense together in options that are each in their range, a line each."""
    yield from _run_mistakes(config)
    yield from own_data_mistakes(config)
    yield from _secure_mistakes(config)
    yield from _model_mistakes(config)
    yield from _training_mistakes(config)
    yield from _quantization_mistakes(config)
    yield from _audit_mistakes(config)
    yield from _curve_mistakes(config)
    yield from _engine_mistakes(config)
    yield from _poisoning_mistakes(config)
    yield from _detection_mistakes(config)


def _run_mistakes(config: Config) -> Iterator[str]:
    name = config.run.name
    if name in ("", "..") or Path(name).name != name or not name.isprintable():
        yield f"run.name={name!r}: expected a plain folder name, without '/'"
    if config.run.resume and not config.run.keep_checkpoints:
        yield "run.keep_checkpoints=0: expected at least 1 with run.resume=true"
    needed, clients = config.strategy.minimum_replies, config.data.clients
    if needed > clients:
        yield f"strategy.minimum_replies={needed}: expected at most data.clients={clients}"


def _secure_mistakes(config: Config) -> Iterator[str]:
    if config.strategy.secure_aggregation:
        return
    for name, none in (("secure_range", None), ("secure_rounding", "nearest"), ("secure_tolerance", None)):
        if (value := getattr(config.strategy, name)) != none:
            yield f"strategy.{name}={value}: only strategy.secure_aggregation=true uses it; leave it out"


def _model_mistakes(config: Config) -> Iterator[str]:
    model = config.model
    if not spikes_natively(config):
        for name in SPIKING:
            if (value := getattr(model, name)) is not None:
                yield (
                    f"model.{name}={value}: only a network that is trained as a spiking one uses it, and "
                    "model.neuron=relu; leave it out, or name its neurons: model.neuron=lif"
                )
        return
    if config.strategy.spiking:
        yield (
            f"strategy.spiking=true: the S-variants convert ordinary networks, and one of model.neuron={model.neuron} "
            "is trained as a spiking network; set strategy.spiking=false (in YAML, strategy: {spiking: false})"
        )
    if config.evaluation.curve:
        yield (
            f"evaluation.curve={list(config.evaluation.curve)}: only converted networks are measured at other lengths, "
            f"and model.neuron={model.neuron} is trained for its own; leave it out"
        )
    for name, unused, why in (
        ("beta", model.neuron == "if", "model.neuron=if doesn't leak"),
        ("learn_beta", model.neuron == "if", "model.neuron=if doesn't leak"),
        ("surrogate_slope", model.surrogate == "straight_through", "model.surrogate=straight_through has none"),
        ("output_fires", model.readout == "rate", "output neurons of model.readout=rate always fire"),
    ):
        if unused and (value := getattr(model, name)) is not None:
            yield f"model.{name}={value}: {why}; leave it out"


def _training_mistakes(config: Config) -> Iterator[str]:
    training = config.training
    if training.levels is not None and training.activation == "relu":
        yield f"training.levels={training.levels}: training.activation=relu has none; leave it out, or set qcfs"
    if training.activation == "qcfs" and spikes_natively(config):
        yield (
            f"training.activation=qcfs: quantises ReLUs, and model.neuron={config.model.neuron} has neurons in their "
            "place; set relu"
        )
    if training.activation == "qcfs" and config.quantization.activations:
        yield (
            f"quantization.activations={config.quantization.activations}: training.activation=qcfs quantises them "
            "already; set 0"
        )
    if training.loss == "per_step" and not spikes_natively(config):
        yield (
            "training.loss=per_step: only a network that is trained as a spiking one has a loss for each step, and "
            "model.neuron=relu; set readout, or name its neurons: model.neuron=lif"
        )
    if training.precision != "float32" and not spikes_natively(config):
        yield (
            f"training.precision={training.precision}: only networks that are trained as spiking ones are computed so, "
            "and model.neuron=relu; leave it out"
        )
    if training.optimizer != "sgd" and training.momentum != TrainingConfig().momentum:
        default = TrainingConfig().momentum
        yield (
            f"training.momentum={training.momentum}: is for training.optimizer=sgd alone, and "
            f"training.optimizer={training.optimizer} doesn't use it; leave it out, or if it stands in the file, "
            f"say training.momentum={default}, the default, which counts as left out"
        )


def _quantization_mistakes(config: Config) -> Iterator[str]:
    quantization, neuron = config.quantization, config.model.neuron
    weights, activations, potentials = (f"quantization.{n}={getattr(quantization, n)}" for n in _IN_TRAINING)
    if quantization.activations and (spikes_natively(config) or converts(config)):
        instead = f"model.neuron={neuron}" if spikes_natively(config) else "strategy.spiking=true"
        yield f"{activations}: spikes take the place of activations with {instead}; set 0, or train a plain network"
    if quantization.potentials and not spikes_natively(config):
        yield f"{potentials}: only trained neurons have them, and model.neuron=relu; set 0, or model.neuron=lif"
    if quantization.weights and converts(config) and not quantization.per_channel:
        yield (
            f"{weights}: folded batch normalisation multiplies channels, each by its own factor, which one scale for "
            "all doesn't survive; set quantization.per_channel=true with strategy.spiking=true"
        )
    if quantization.weights and config.training.precision != "float32":
        yield f"{weights}: training.precision={config.training.precision} rounds weights otherwise; set float32"
    if quantization.per_channel and not quantization.weights:
        yield "quantization.per_channel=true: of weights, and quantization.weights=0; leave it out"
    if quantization.clip is not None and not (quantization.activations or quantization.potentials):
        yield (
            f"quantization.clip={quantization.clip}: clips activations and potentials that are quantised, and neither "
            "is; leave it out"
        )
    uploads = f"quantization.uploads={quantization.uploads}"
    if quantization.uploads and not client_side(config).uploads:
        yield f"{uploads}: strategy.name={config.strategy.name} uploads nothing; set 0"
    if quantization.uploads and config.privacy.mechanism in ("local", "distributed"):
        yield (
            f"{uploads}: error feedback adds to a clipped update what earlier ones left out, so that its norm is no "
            "longer bounded; set 0, or let the server clip (privacy.mechanism=central)"
        )


def _audit_mistakes(config: Config) -> Iterator[str]:
    audit = config.audit
    if audit.attacks and not audit.record:
        yield f"audit.attacks={list(audit.attacks)}: attacks read the recording; set audit.record=true"
    if audit.crafted != "none":
        crafted = f"audit.crafted={audit.crafted}"
        if not audit.record or not audit.rounds:
            yield f"{crafted}: crafted rounds train nothing; set audit.record=true and name them in audit.rounds"
        if config.strategy.spiking:
            yield f"{crafted}: sets biases, which an S-run's server doesn't send; set strategy.spiking=false"
        if spikes_natively(config):
            yield f"{crafted}: sorts by ReLU, and model.neuron={config.model.neuron} has none; set model.neuron=relu"
        limit, secure = config.strategy.secure_range, config.strategy.secure_aggregation
        if audit.crafted == "loki" and secure and (limit is None or limit > FINEST):
            yield (
                f"{crafted}: moves weights by less than secure aggregation rounds to within its range; set "
                f"strategy.secure_range={FINEST} or less"
            )
    if audit.ground_truth and not audit.record:
        yield (
            "audit.ground_truth=true: without audit.record=true there is nothing to score; set it, or leave this out"
        )
    for name, low in (("rounds", 1), ("clients", 0)):
        values = getattr(audit, name)
        if wrong := [value for value in values if value < low]:
            yield f"audit.{name}={list(values)}: {wrong[0]} is none; they are counted from {low}"
    if beyond := [number for number in audit.rounds if number > config.run.rounds]:
        yield (
            f"audit.rounds={list(audit.rounds)}: there is no round {beyond[0]}; set run.rounds={max(audit.rounds)} or "
            f"more, or leave out what is beyond run.rounds={config.run.rounds}"
        )
    last = config.data.clients - 1
    if beyond := [client for client in audit.clients if client > last]:
        yield (
            f"audit.clients={list(audit.clients)}: there is no client {beyond[0]}; with "
            f"data.clients={config.data.clients} they are 0 to {last}"
        )


def _curve_mistakes(config: Config) -> Iterator[str]:
    conversion, curve = config.conversion, config.evaluation.curve
    if wrong := [length for length in curve if length < 1]:
        yield f"evaluation.curve={list(curve)}: {wrong[0]} is no length; expected at least 1"
    bound = conversion.initial_potential == "drip" or conversion.calibration == "time_bias"
    if bound and (wrong := [length for length in curve if length > conversion.steps]):
        yield (
            f"evaluation.curve={list(curve)}: {wrong[0]} is longer than conversion.steps={conversion.steps}, for which "
            "a drip and biases in time are made; leave it out"
        )


def _engine_mistakes(config: Config) -> Iterator[str]:
    engine, device = config.engine, config.run.device
    for key, item, _ in options():
        value, user = value_of(config, key), _ENGINE_OF.get(key, engine.name)
        if user != engine.name and value != item.default:
            yield f"{key}={value}: only engine.name={user} uses it, and engine.name={engine.name}; leave it out"
    if engine.name == "deployment" and config.model.weights is not None:
        yield (
            f"model.weights={config.model.weights}: a node reads no file that its server names; leave it out with "
            "engine.name=deployment"
        )
    if engine.name == "ray" and device != "cpu" and engine.gpus_per_client == 0:
        yield f"run.device={device}: on Ray a client of engine.gpus_per_client=0 sees no GPU; set it, or cpu"


def _poisoning_mistakes(config: Config) -> Iterator[str]:
    poisoning, attack = config.poisoning, config.poisoning.attack
    for item in dataclasses.fields(poisoning):
        value: Any = getattr(poisoning, item.name)
        users = _ATTACKS_OF.get(item.name, (attack,))
        unused = attack == "none" or (attack in BUILT_IN and attack not in users)
        if value != item.default and item.name != "attack" and unused:
            named = " or ".join(_ATTACKS_OF.get(item.name, ("an attack",)))
            yield f"poisoning.{item.name}={value}: only {named} uses it, and poisoning.attack={attack}; leave it out"
    if attack == "none":
        return
    if not client_side(config).uploads:
        yield f"poisoning.attack={attack}: strategy.name={config.strategy.name} sends no update to poison; set none"
    if poisoning.attackers > config.data.clients:
        yield f"poisoning.attackers={poisoning.attackers}: expected at most data.clients={config.data.clients}"
    if poisoning.first_round > config.run.rounds:
        yield f"poisoning.first_round={poisoning.first_round}: expected at most run.rounds={config.run.rounds}"
    if poisoning.source == poisoning.target:
        yield f"poisoning.source={poisoning.source}: is poisoning.target too, so that nothing changes; choose another"
    if poisoning.forge_thresholds and not (converts(config) or config.model.learn_threshold):
        yield (
            "poisoning.forge_thresholds=true: clients upload no thresholds with strategy.spiking=false, unless they "
            "train them (model.learn_threshold=true); set false"
        )
    if poisoning.scale_ann and not converts(config):
        yield "poisoning.scale_ann=true: a plain run (strategy.spiking=false) converts nothing; set false"


def _detection_mistakes(config: Config) -> Iterator[str]:
    exclude, detectors = config.detection.exclude, config.detection.detectors
    if exclude is not None and exclude not in detectors:
        yield f"detection.exclude={exclude}: not among detection.detectors={list(detectors)}; add it there"
    if exclude is not None and config.privacy.mechanism in ("central", "distributed"):
        yield (
            f"detection.exclude={exclude}: whether one client's update counts would depend on the others', for which "
            f"privacy.mechanism={config.privacy.mechanism} has no noise; set null"
        )
    if detectors and not client_side(config).uploads:
        name = config.strategy.name
        yield f"detection.detectors={list(detectors)}: strategy.name={name} sends no update to judge; set []"
