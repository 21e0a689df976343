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

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.compare.study import assignments_of, labelled, name_of, read_file
from snnfl.config import (
    Config,
    ConfigError,
    EncryptionConfig,
    ModelAttackConfig,
    PrivateSNNConfig,
    PublishingConfig,
    SynthesisConfig,
    spikes_natively,
    to_yaml,
    validate,
)
from snnfl.model_attacks import get_model_attack
from snnfl.neurons import SURROGATES
from snnfl.plugins import load_installed, load_listed, resolve, used
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

OF_A_RUN = "privatesnn"
"""Folder of what is made of a run's network, within the run's."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One network that is published.

    Attributes:
        labels: Its place in the matrix: label by axis.
        config: Data, network, training and seed.
        private: How images are made, and how it is converted and encrypted on them.
        path: Its folder: all that is made of the network.
        run: Folder of the finished run whose network it is; ``None``: the network is trained here.
        control: Whether it is converted on training images, too.
        curve: Lengths at which accuracy is measured.
        variants: Other encryptions.
        attack: How it is attacked.
        locks: Other ways to convert and encrypt it that are attacked, by their name.
        lock: Which of them this is; empty: none.
    """

    labels: Mapping[str, str]
    config: Config
    private: PrivateSNNConfig
    path: Path
    run: Path | None = None
    control: bool = True
    curve: tuple[int, ...] = ()
    variants: tuple[EncryptionConfig, ...] = ()
    attack: ModelAttackConfig = field(default_factory=ModelAttackConfig)
    locks: Mapping[str, PrivateSNNConfig] = field(default_factory=dict)
    lock: str = ""

    def locked(self, lock: str) -> Setting:
        """Return the setting of a lock: the same network and images, otherwise converted and encrypted."""
        return replace(self, private=self.locks[lock], lock=lock, variants=(), locks={})

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join(f"{axis}={label}" for axis, label in self.labels.items())

    @property
    def synthetic(self) -> Path:
        """Folder of the synthetic images."""
        return self.path / "synthetic"

    @property
    def ann(self) -> Path:
        """Weights of the network that is trained here."""
        return self.path / "ann.safetensors"

    @property
    def converted(self) -> Path:
        """The converted network, before encryption; on a thief's view of it attacks are controls."""
        return self.path / f"{self._prefix}converted.safetensors"

    @property
    def published(self) -> Path:
        """The encrypted network: what is published."""
        return self.path / f"{self._prefix}published.safetensors"

    @property
    def _prefix(self) -> str:
        """Of a lock's files: its name, and a hash of what it is."""
        digest = hashlib.sha256(json.dumps(asdict(self.private)).encode()).hexdigest()[:10]
        return f"lock-{_slug(self.lock)}-{digest}-" if self.lock else ""

    def stolen(self, target: str, attack: str) -> Path:
        """What an attack got out of a network, without its suffix."""
        listed = ("attacks", "networks")  # which others are tried changes nothing
        asked = json.dumps({key: value for key, value in asdict(self.attack).items() if key not in listed})
        digest = hashlib.sha256(asked.encode()).hexdigest()[:10]
        return self.path / "attacks" / f"{self._prefix}{target}-{attack}-{digest}"

    @property
    def results(self) -> Path:
        """What was measured."""
        return self.path / "results.json"


@dataclass(frozen=True, kw_only=True)
class PrivateStudy:
    """A checked study.

    Attributes:
        name: Of its folder.
        settings: The whole matrix of the first seed, then of the next.
        directory: Its folder.
    """

    name: str
    settings: Sequence[Setting]
    directory: Path


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
    _check_own(path, assigned, others, axes)
    settings = []
    for seed in _seeds(path, content):
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
            setting = Setting(
                labels={**here, "seed": str(seed)}, config=config, private=private, path=Path(),
                control=_flag(path, content), curve=_curve(path, content), variants=_variants(path, content, private),
                attack=_attack(path, content, mine), locks=_locks(path, content, mine),
            )  # fmt: skip
            settings.append(replace(setting, path=_folder(name, setting)))
    return PrivateStudy(name=name, settings=settings, directory=Path(settings[0].config.run.directory) / name)


def check_images(study: PrivateStudy) -> None:
    """Refuse an encryption, a variant or a lock that wants more images than are made, before anything is computed.

    Raises:
        ConfigError: Naming how many there are.
    """
    for setting in study.settings:
        locks = [lock.encryption for lock in setting.locks.values()]
        most = max(each.images for each in (setting.private.encryption, *setting.variants, *locks))
        if most > (made := setting.private.synthesis.images):
            raise ConfigError(
                f"encryption.images={most}: there are {made} synthetic images; lower it, or raise synthesis.images"
            )


def _is_private(assignment: str) -> bool:
    """Tell whether ``key=value`` is of one of the :data:`SECTIONS`, or of an attack."""
    return assignment.partition(".")[0] in (*SECTIONS, ATTACK)


def _check_own(
    path: Path, assigned: Sequence[str], overrides: Sequence[str], axes: Mapping[str, Mapping[str, list[str]]]
) -> None:
    """Refuse options that would be replaced without a word."""
    for assignment in assigned:
        if (key := assignment.partition("=")[0]) in OWN:
            raise ConfigError(f"{path}: {assignment}: {OWN[key]}")
    varied = {each.partition("=")[0] for axis in axes.values() for given in axis.values() for each in given}
    for override in overrides:
        if override.partition("=")[0] in varied:
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
        path=path / OF_A_RUN, run=path, control=False, attack=_attack(path, {}, own),
    )  # fmt: skip
    return PrivateStudy(name=path.name, settings=[setting], directory=path / OF_A_RUN)


def _check(config: Config) -> None:
    validate(config)
    if spikes_natively(config):
        raise ConfigError(
            f"model.neuron={config.model.neuron}: PrivateSNN converts an ordinary network; leave model.neuron out"
        )
    if config.model.pooling == "max":
        raise ConfigError("model.pooling=max: spikes of a maximum aren't defined here; take average")
    if config.training.activation == "qcfs":
        raise ConfigError(
            "training.activation=qcfs: its thresholds are learned, and PrivateSNN's follow from images; train with relu"
        )


def _axes(path: Path, content: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    matrix = content.get("matrix", {})
    if not isinstance(matrix, dict):
        raise ConfigError(f"{path}: matrix={matrix}: expected axes, such as data.source: [fashion_mnist, cifar10]")
    return {str(axis): labelled(path, str(axis), values) for axis, values in matrix.items()}


def _private(path: Path, content: Mapping[str, Any], overrides: Sequence[str]) -> PrivateSNNConfig:
    """Build the three sections from the file and from ``section.key=value``."""
    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
        return PrivateSNNConfig(
            **{name: _section(name, content.get(name, {}), given.get(name, {})) for name in SECTIONS}
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _attack(path: Path, content: Mapping[str, Any], overrides: Sequence[str]) -> ModelAttackConfig:
    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
        found: ModelAttackConfig = _section(ATTACK, content.get(ATTACK, {}), given.get(ATTACK, {}))
        for name in found.attacks:
            get_model_attack(name)
        ModelKnowledge().without(found.deny)
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
        if strange := [key for key in options if key.partition(".")[0] not in ("publishing", "encryption")]:
            raise ConfigError(f"{path}: locks: {name}: {strange[0]}: expected options of publishing and encryption")
        changes = [f"{key}={value}" for key, value in options.items()]
        found[str(name)] = _private(path, content, [*overrides, *changes])
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
            SURROGATES.find(str(values["surrogate"]))
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


def _seeds(path: Path, content: Mapping[str, Any]) -> list[int]:
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise ConfigError(f"{path}: seeds={seeds}: expected a list of whole numbers, such as [0, 1, 2]")
    return seeds


def _curve(path: Path, content: Mapping[str, Any]) -> tuple[int, ...]:
    curve = content.get("curve", [])
    if not isinstance(curve, list) or not all(isinstance(length, int) and length > 0 for length in curve):
        raise ConfigError(f"{path}: curve={curve}: expected lengths in time steps, such as [16, 32, 64]")
    return tuple(sorted(set(curve)))


def _flag(path: Path, content: Mapping[str, Any]) -> bool:
    control = content.get("control", True)
    if not isinstance(control, bool):
        raise ConfigError(f"{path}: control={control}: expected true or false")
    return control


def _folder(study: str, setting: Setting) -> Path:
    """Name a setting's folder after its labels and a hash of all that decides what is made."""
    config = setting.config
    plain = replace(config, run=replace(config.run, name="network", directory="runs", tracking=None))
    decides = to_yaml(plain) + json.dumps(asdict(setting.private))
    decides += "".join(f"{plugin.name} {plugin.version}\n" for plugin in used(plain))
    digest = hashlib.sha256(decides.encode()).hexdigest()[:10]
    return Path(config.run.directory) / study / f"{_slug('-'.join(setting.labels.values()))}-{digest}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text)
