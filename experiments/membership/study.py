"""A membership study's YAML file: which networks are trained, and who asks for their members.

.. code-block:: yaml

    name: table3_surrogates
    options: {data.source: fashion_mnist, data.training_images: 4000, model.name: fcnet, model.neuron: lif}
    matrix:                                         # every combination is a setting
      # strategy.spiking: [false, true]             # true: networks are converted once they are trained
      model.surrogate: [fast_sigmoid, atan]         # an option's values, or label -> options as in docs/compare.md
      training.epochs: [5, 20]                      # several lengths: settings are compared at equal gaps, too
    networks: 8                                     # of each setting: each in turn the target, the others its shadows
    attacks: [paper, loss, rmia]                    # all that apply, if left out
    deny: [white_box]                               # facts that the attacker lacks
    tables:
      - {value: auc, rows: model.surrogate, columns: attack, where: {training.epochs: 20}}
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from experiments.compare.study import assignments_of, labelled, name_of, read_file
from experiments.compare.views import View, read_tables
from snnfl.config import Config, ConfigError, to_yaml, validate, value_of
from snnfl.membership_attacks import MEMBERSHIP_ATTACKS, MembershipAttack, get_membership_attack
from snnfl.plugins import Plugin, load_installed, load_listed, resolve, used
from snnfl.threat import MembershipKnowledge
from snnfl.workspace import Workspace

KEYS = ("name", "plugins", "base", "options", "matrix", "networks", "attacks", "deny", "tables")

SHOWN = ("membership", "overfitting")
"""Sources of :data:`~experiments.compare.views.SOURCES` that tables can show."""

NETWORKS = 8

LENGTH = "training.epochs"
"""The axis along which networks overfit more and more: settings are compared where their gaps are equal."""

Kind: TypeAlias = Literal["network", "overlap", "disjoint"]
"""A target and shadow; the paper's shadow of one, trained on 80 % of its members; the shadow of other samples."""

OF_A_FEDERATION = ("conversion", "strategy", "privacy", "evaluation", "engine", "audit", "poisoning", "detection")
"""Sections without effect: each network is trained by itself. ``conversion`` has one with ``strategy.spiking=true``."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network that is to be trained.

    Attributes:
        kind: What it is for.
        number: Among those of its kind.
    """

    kind: Kind
    number: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.kind}-{self.number}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A combination of the matrix: several networks, and attacks on them.

    Attributes:
        labels: Its place in the matrix: label by axis.
        config: Of the training.
        networks: How many of them are attacked.
        attacks: Names.
        knowledge: The threat model.
        path: Its folder, whose name holds a hash of what decides the training.
        plugins: That it is made with.
    """

    labels: Mapping[str, str]
    config: Config
    networks: int
    attacks: tuple[str, ...]
    knowledge: MembershipKnowledge
    path: Path
    plugins: Sequence[Plugin] = ()

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join(f"{axis}={label}" for axis, label in self.labels.items())

    @property
    def needed(self) -> list[MembershipAttack]:
        """The attacks that the threat model grants."""
        attacks = [get_membership_attack(name) for name in self.attacks]
        return [attack for attack in attacks if attack.needs <= self.knowledge.facts]

    def needs(self, fact: str) -> bool:
        """Tell whether some attack that may run needs a fact."""
        return fact in self._facts

    @cached_property
    def _facts(self) -> frozenset[str]:
        """What the attacks that may run need, together."""
        return frozenset[str]().union(*(attack.needs for attack in self.needed))

    @cached_property
    def cells(self) -> list[Network]:
        """Every network that the attacks need, those that several share once."""
        found = [Network(kind="network", number=number) for number in range(self.networks)]
        if self.needs("overlap"):
            found += [Network(kind="overlap", number=number) for number in range(self.networks)]
        if self.needs("disjoint"):
            found.append(Network(kind="disjoint", number=0))
        return found

    @cached_property
    def results(self) -> Path:
        """File of what the attacks found, whose name follows from what was asked."""
        asked = f"{self.networks} {sorted(self.attacks)} {sorted(self.knowledge.facts)}"
        return self.path / f"results-{hashlib.sha256(asked.encode()).hexdigest()[:10]}.json"


@dataclass(frozen=True, kw_only=True)
class MembershipStudy:
    """A checked study.

    Attributes:
        name: Its folder below ``runs/``.
        settings: In the order of the matrix.
        tables: To write.
        directory: Its folder.
    """

    name: str
    settings: Sequence[Setting]
    tables: Sequence[View]
    directory: Path


def read_membership_study(
    path: Path, overrides: Sequence[str] = (), plugins: Sequence[str | Path] = ()
) -> MembershipStudy:
    """Read and check a study, before anything is trained.

    Args:
        path: YAML file.
        overrides: ``key=value`` for every setting.
        plugins: Beside those that the file lists, relative to the current folder.

    Raises:
        ConfigError: Naming the file, the key or the setting.
    """
    content = read_file(path, KEYS)
    load_installed()
    axes = _axes(path, content)
    try:
        own = [plugin.path or plugin.name for plugin in load_listed(content.get("plugins", ()), path.parent)]
        load_listed([*plugins], None)
        attacks, knowledge = _attacks(content), _knowledge(content)
        networks = _networks(content)
        tables = _tables(content, axes)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    name, settings = name_of(path, content), list[Setting]()
    assigned = [*assignments_of(path, "options", content.get("options", {})), *overrides]
    base = None if content.get("base") is None else path.parent / str(content["base"])
    for choice in itertools.product(*axes.values()):
        here = dict(zip(axes, choice, strict=True))
        chosen = [assignment for axis, label in here.items() for assignment in axes[axis][label]]
        try:
            config = _checked(resolve(base, ["strategy.spiking=false", *assigned, *chosen], [*own, *plugins]), networks)
        except ConfigError as error:
            raise ConfigError(f"{path}: {', '.join(f'{a}={b}' for a, b in here.items())}: {error}") from None
        settings.append(
            Setting(
                labels=here, config=config, networks=networks, attacks=attacks, knowledge=knowledge,
                path=_folder(name, config, here), plugins=used(config),
            )
        )  # fmt: skip
    directory = Path(settings[0].config.run.directory) / name
    return MembershipStudy(name=name, settings=settings, tables=tables, directory=directory)


def tables_of(path: Path) -> tuple[View, ...]:
    """Read which tables a study shows, and nothing else: its data needn't be there.

    Raises:
        ConfigError: For a mistake in them.
    """
    content = read_file(path, KEYS)
    return _tables(content, _axes(path, content))


def _tables(content: Mapping[str, Any], axes: Mapping[str, Mapping[str, list[str]]]) -> tuple[View, ...]:
    labels = {axis: list(chosen) for axis, chosen in axes.items()}
    tables = read_tables(content.get("tables", [{"value": "auc", "rows": [*axes, "attack"]}]), labels)
    if wrong := [view.value for view in tables if view.source not in SHOWN]:
        raise ConfigError(f"tables: {wrong[0]} is measured of federations; take auc or tpr_at_1, for instance")
    return tables


def _axes(path: Path, content: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    matrix = content.get("matrix")
    if not isinstance(matrix, dict) or not matrix:
        raise ConfigError(f"{path}: matrix is empty; give at least one axis, such as model.neuron: [relu, lif]")
    return {str(axis): labelled(path, str(axis), values) for axis, values in matrix.items()}


def _attacks(content: Mapping[str, Any]) -> tuple[str, ...]:
    given = content.get("attacks")
    names = [given] if isinstance(given, str) else list(MEMBERSHIP_ATTACKS.items) if given is None else given
    if not names or not isinstance(names, list):
        raise ConfigError(f"attacks={given}: expected a list of at least one; leave it out for all that apply")
    return tuple(dict.fromkeys(get_membership_attack(str(name)).name for name in names))


def _knowledge(content: Mapping[str, Any]) -> MembershipKnowledge:
    given = content.get("deny") or []
    return MembershipKnowledge().without(map(str, given if isinstance(given, list) else [given]))


def _networks(content: Mapping[str, Any]) -> int:
    networks = content.get("networks", NETWORKS)
    if not isinstance(networks, int) or networks < 2:
        raise ConfigError(f"networks={networks}: expected at least 2; each is attacked with the others as shadows")
    return networks


def _checked(config: Config, networks: int) -> Config:
    """Refuse what has no effect, and what the data set or the model doesn't have."""
    for key, value in _of_a_federation(config):
        raise ConfigError(f"{key}={value}: each network is trained by itself; leave it out")
    validate(config)
    work = Workspace(config)
    count = len(work.dataset.train_labels)
    if count < 4:
        raise ConfigError(f"data.source={config.data.source}: {count} training samples; {networks} networks need more")
    _ = work.model
    return config


def _of_a_federation(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield what is set of a federation, and has no effect."""
    default = Config()
    converted = config.strategy.spiking
    default = replace(default, strategy=replace(default.strategy, spiking=converted))
    for section in OF_A_FEDERATION:
        if converted and section == "conversion":
            continue
        own, usual = getattr(config, section), getattr(default, section)
        yield from (
            (f"{section}.{item.name}", getattr(own, item.name))
            for item in fields(own)
            if getattr(own, item.name) != getattr(usual, item.name)
        )
    for key in ("data.clients", "data.partition", "run.rounds", "quantization.uploads"):
        if value_of(config, key) != value_of(default, key):
            yield key, value_of(config, key)


def _folder(study: str, config: Config, labels: Mapping[str, str]) -> Path:
    plain = replace(config, run=replace(config.run, name="network", directory="runs", tracking=None))
    decides = to_yaml(plain) + "".join(f"{plugin.name} {plugin.version}\n" for plugin in used(plain))
    digest = hashlib.sha256(decides.encode()).hexdigest()[:10]
    slug = re.sub(r"[^A-Za-z0-9.-]+", "_", "-".join(labels.values()))
    return Path(config.run.directory) / study / f"{slug}-{digest}"
