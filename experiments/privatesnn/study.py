"""A PrivateSNN study's YAML file: which networks are made into published ones, and how; or a run whose network is.

.. code-block:: yaml

    name: laptop
    options: {data.source: fashion_mnist, model.name: lenet5, training.optimizer: adam, training.epochs: 3}
    matrix:                                   # every combination is a setting, as in docs/compare.md
      data.source: [fashion_mnist, cifar10]
      images: {noise: {synthesis.statistics: 0.0}, matched: {synthesis.statistics: 1.0}}
    seeds: [0, 1, 2]
    synthesis: {images: 1000, iterations: 250}
    publishing: {steps: 64}
    encryption: {epochs: 5, images: 1000}
    control: true                             # convert on training images, too
    curve: [16, 32, 64, 128]                  # lengths at which accuracy is measured
    variants:                                 # other encryptions of the same network: every combination
      images: [100, 1000]
      distillation: [0.0, 0.7]
    attack: {starts: 4, deny: [public_images]} # of snnfl privatesnn attack
    locks:                                    # other ways to encrypt, which are attacked, too
      few steps: {publishing.steps: 8}
      penalty: {encryption.relu_penalty: 3.0}
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from experiments.compare.study import assignments_of, labelled, name_of, read_file, seeds_of
from experiments.privatesnn.setting import (
    OF_A_RUN,
    PrivateStudy,
    Setting,
    folder_of,
    network_of_run,
    trained_network,
)
from snnfl.config import (
    Config,
    ConfigError,
    EncryptionConfig,
    ModelAttackConfig,
    PrivateSNNConfig,
    PublishingConfig,
    SynthesisConfig,
    assigned,
    nearest,
    spikes_natively,
    validate,
)
from snnfl.config.private_snn import NETWORKS
from snnfl.data import check_source
from snnfl.model_attacks import get_model_attack
from snnfl.models import MODELS
from snnfl.neurons import SURROGATES
from snnfl.plugins import load_installed, load_listed, resolve
from snnfl.threat import ModelKnowledge
from strategies.run_directory import ANN_FILE, SNN_FILE, read_config

SECTIONS = {"synthesis": SynthesisConfig, "publishing": PublishingConfig, "encryption": EncryptionConfig}
ATTACK = "attack"
KEYS = (
    "name", "plugins", "base", "options", "matrix", "seeds", *SECTIONS, "control", "curve", "variants", ATTACK, "locks",
)  # fmt: skip
VARIED = ("images", "distillation")
ALONE = ("strategy.spiking=false", "data.clients=1")
"""Of a network that is trained here: nobody federates."""
OWN = {
    "run.seed": "list seeds under the key seeds",
    "strategy.spiking": "nobody federates here; give the folder of a finished run",
    "data.clients": "nobody federates here; give the folder of a finished run",
}
"""Options that every setting has from the study, and where to say what is meant."""


def read_private_study(path: Path, overrides: Sequence[str] = (), plugins: Sequence[str | Path] = ()) -> PrivateStudy:
    """Read and check a study, or a finished run, before anything is computed.

    Args:
        path: YAML file, or a run's folder.
        overrides: ``key=value``, also of ``synthesis``, ``publishing`` and ``encryption``.
        plugins: Beside those that the file lists, relative to the current folder.

    Raises:
        ConfigError: Naming the file and the key.
        RunFileError: If the folder holds no run.
    """
    load_installed()
    own, others = [*filter(_is_private, overrides)], [*itertools.filterfalse(_is_private, overrides)]
    if path.is_dir():
        load_listed([*plugins], None)
        return _of_run(path, own, others)
    content = read_file(path, KEYS)
    files = [plugin.path or plugin.name for plugin in load_listed(content.get("plugins", ()), path.parent)]
    name, axes = name_of(path, content), _axes(path, content)
    base = None if content.get("base") is None else path.parent / str(content["base"])
    assigned = [*assignments_of(path, "options", content.get("options", {})), *others]
    _check_own(path, assigned, overrides, axes)
    settings = []
    for seed in seeds_of(path, content):
        for choice in itertools.product(*axes.values()):
            here = dict(zip(axes, choice, strict=True))
            chosen = [assignment for axis, label in here.items() for assignment in axes[axis][label]]
            mine = [*filter(_is_private, chosen), *own]
            private = _private(path, content, mine)
            fixed = [*itertools.filterfalse(_is_private, chosen), f"run.seed={seed}", *ALONE]
            try:
                config = resolve(base, [*assigned, *fixed], [*files, *plugins])
                _check(config)
            except ConfigError as error:
                place = ", ".join(f"{a}={b}" for a, b in here.items())
                raise ConfigError(": ".join(map(str, filter(None, (path, place, error))))) from None
            network = trained_network(config)
            settings.append(Setting(
                labels={**here, "seed": str(seed)}, config=config, private=private, network=network,
                path=folder_of(Path(config.run.directory) / name, config, network),
                control=_flag(path, content), curve=_curve(path, content), variants=_variants(path, content, private),
                attack=_attack(path, content, mine), locks=_locks(path, content, mine),
            ))  # fmt: skip
    return PrivateStudy(name=name, settings=settings, directory=Path(settings[0].config.run.directory) / name)


def _is_private(assignment: str) -> bool:
    """Tell whether ``key=value`` is of one of the :data:`SECTIONS`, or of an attack."""
    return assignment.replace("=", ".").partition(".")[0] in (*SECTIONS, ATTACK)


def _check_own(
    path: Path, assigned: Sequence[str], overrides: Sequence[str], axes: Mapping[str, Mapping[str, list[str]]]
) -> None:
    """Refuse options that would be replaced without a word."""
    for assignment in assigned:
        if (key := assignment.partition("=")[0]) in OWN:
            raise ConfigError(f"{path}: {assignment}: {OWN[key]}")
    varied = {each.partition("=")[0] for axis in axes.values() for given in axis.values() for each in given}
    for override in overrides:
        key = override.partition("=")[0]
        if any(option == key or option.startswith(f"{key}.") for option in varied):
            raise ConfigError(f"{path}: {override}: the matrix sets this option; change it there")


def _of_run(path: Path, own: Sequence[str], others: Sequence[str]) -> PrivateStudy:
    config = read_config(path)
    if others:
        raise ConfigError(
            f"{others[0]}: the options of {path} stand; those of {', '.join(SECTIONS)} can be set, such as "
            "publishing.steps=64"
        )
    _check(config)
    if not (path / ANN_FILE).exists() and not (path / SNN_FILE).exists():
        raise ConfigError(f"{path}: the run has left no network yet; finish it: snnfl run … --resume")
    setting = Setting(
        labels={"run": path.name, "seed": str(config.run.seed)}, config=config, private=_private(path, {}, own),
        network=network_of_run(path), path=path / OF_A_RUN, run=path, control=False, attack=_attack(path, {}, own),
    )  # fmt: skip
    return PrivateStudy(name=path.name, settings=[setting], directory=path / OF_A_RUN)


def _check(config: Config) -> None:
    validate(config)
    check_source(config.data.source)
    MODELS.find(config.model.name)
    if spikes_natively(config):
        raise ConfigError(
            f"model.neuron={config.model.neuron}: PrivateSNN converts an ordinary network; leave model.neuron out"
        )
    if config.training.activation == "qcfs":
        raise ConfigError(
            "training.activation=qcfs: its thresholds are learned, and PrivateSNN's follow from images; train with relu"
        )


def _axes(path: Path, content: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    matrix = content.get("matrix", {})
    if not isinstance(matrix, dict):
        raise ConfigError(f"{path}: matrix={matrix}: expected axes, such as data.source: [fashion_mnist, cifar10]")
    own = [f"{name}.{option.name}" for name, section in SECTIONS.items() for option in fields(section)]
    return {str(axis): labelled(path, str(axis), values, own) for axis, values in matrix.items()}


def _private(path: Path | str, content: Mapping[str, Any], overrides: Sequence[str]) -> PrivateSNNConfig:
    """Build the three sections from the file and from ``section.key=value``."""
    try:
        given = _given(overrides)
        return PrivateSNNConfig(
            **{name: _section(name, content.get(name, {}), given.get(name, {})) for name in SECTIONS}
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _given(overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read ``section.key=value``, of which the last one of a key holds."""
    found: dict[str, dict[str, Any]] = {}
    for override in overrides:
        for section, options in assigned(override).items():
            if not isinstance(options, dict):
                raise ConfigError(f"{override}: expected an option of {section}, such as {section}.images=1000")
            found.setdefault(section, {}).update(options)
    return found


def _attack(path: Path, content: Mapping[str, Any], overrides: Sequence[str]) -> ModelAttackConfig:
    try:
        given = _given(overrides)
        found: ModelAttackConfig = _section(ATTACK, content.get(ATTACK, {}), given.get(ATTACK, {}))
        for name in found.attacks:
            get_model_attack(name)
        ModelKnowledge().without(found.deny)
        for key, names in (("attacks", found.attacks), ("networks", found.networks)):
            if len({*names}) < len(names):
                raise ConfigError(f"{ATTACK}: {key}={[*names]}: a name is given twice; each counts once")
        if found.judge not in MODELS:
            hint = nearest(str(found.judge), MODELS.names())
            raise ConfigError(f"{ATTACK}: judge={found.judge}: unknown model{hint}")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return found


def _locks(path: Path, content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, PrivateSNNConfig]:
    """Build what each lock is: the sections, with what it changes in them."""
    listed = content.get("locks", {})
    if not isinstance(listed, dict) or not all(isinstance(options, dict) for options in listed.values()):
        raise ConfigError(
            f"{path}: locks={listed}: expected options by name, such as few steps: {{publishing.steps: 8}}"
        )
    found = dict[str, PrivateSNNConfig]()
    for name, options in listed.items():
        where = f"{path}: locks: {name}"
        if name in NETWORKS:
            raise ConfigError(f"{where}: a network that is attacked anyway has this name; give the lock another")
        if strange := [key for key in options if str(key).partition(".")[0] not in ("publishing", "encryption")]:
            raise ConfigError(f"{where}: {strange[0]}: expected options of publishing and encryption")
        changes = assignments_of(path, f"locks.{name}", options)
        found[str(name)] = _private(where, content, [*overrides, *changes])
    return found


def _section(name: str, listed: Any, given: Any) -> Any:
    for values in (listed, given):
        if not isinstance(values, dict):
            raise ConfigError(f"{name}={values}: expected options, such as {{images: 1000}}")
    values = {
        str(key): tuple(value) if isinstance(value, list) else value for key, value in {**listed, **given}.items()
    }
    try:
        if "surrogate" in values:
            SURROGATES.find(str(values["surrogate"]), said=f"surrogate={values['surrogate']}")
        return {**SECTIONS, ATTACK: ModelAttackConfig}[name](**values)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _variants(path: Path, content: Mapping[str, Any], private: PrivateSNNConfig) -> tuple[EncryptionConfig, ...]:
    axes = content.get("variants", {})
    if not isinstance(axes, dict) or not all(key in VARIED and isinstance(axes[key], list) for key in axes):
        raise ConfigError(f"{path}: variants={axes}: expected lists of {' and '.join(VARIED)}")
    choices = [dict(zip(axes, choice, strict=True)) for choice in itertools.product(*axes.values())] if axes else []
    try:
        return tuple(replace(private.encryption, **choice) for choice in choices)
    except ConfigError as error:
        raise ConfigError(f"{path}: variants: {error}") from None


def _curve(path: Path, content: Mapping[str, Any]) -> tuple[int, ...]:
    curve = content.get("curve", [])
    if not isinstance(curve, list) or not all(type(length) is int and length > 0 for length in curve):
        raise ConfigError(f"{path}: curve={curve}: expected lengths in time steps, such as [16, 32, 64]")
    return tuple(sorted(set(curve)))


def _flag(path: Path, content: Mapping[str, Any]) -> bool:
    control = content.get("control", True)
    if not isinstance(control, bool):
        raise ConfigError(f"{path}: control={control}: expected true or false")
    return control
