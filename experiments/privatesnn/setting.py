"""A setting of a study: one network that is published, and where what is made of it lies.

Each file is named after a hash of what decides what is in it, and of nothing else. So whoever changes an option finds
all that doesn't depend on it again, and whoever changes it back finds the rest:

==============================  =======================================================================
folder                          data, model, training, seed; of a finished run the file of its network
``ann.safetensors``             nothing else
``synthetic-…/``                ``synthesis``
``converted-….safetensors``     also ``publishing``
``published-….safetensors``     also ``encryption``; so those of ``variants`` and ``locks``
``results-….json``              also what is measured: test images, ``control``, ``curve``, ``variants``
``attacks/…``                   the attacked network's, and ``attack``
==============================  =======================================================================
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from snnfl.config import Config, EncryptionConfig, ModelAttackConfig, PrivateSNNConfig
from snnfl.plugins import used
from strategies.run_directory import ANN_FILE, SNN_FILE

OF_A_RUN = "privatesnn"
"""Folder of what is made of a run's network, within the run's."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One network that is published.

    Attributes:
        labels: Its place in the matrix: label by axis.
        config: Data, network, training and seed.
        private: How images are made, and how it is converted and encrypted on them.
        network: Hash of what decides its weights.
        path: Its folder: all that is made of the network.
        run: Folder of the finished run whose network it is; ``None``: the network is trained here.
        control: Whether it is converted on training images, too.
        curve: Lengths at which accuracy is measured.
        variants: Other encryptions.
        attack: How it is attacked.
        locks: Other ways to convert and encrypt it that are attacked, by their name.
    """

    labels: Mapping[str, str]
    config: Config
    private: PrivateSNNConfig
    network: str
    path: Path
    run: Path | None = None
    control: bool = True
    curve: tuple[int, ...] = ()
    variants: tuple[EncryptionConfig, ...] = ()
    attack: ModelAttackConfig = field(default_factory=ModelAttackConfig)
    locks: Mapping[str, PrivateSNNConfig] = field(default_factory=dict)

    def locked(self, lock: str) -> Setting:
        """Return the setting of a lock: the same network and images, otherwise converted and encrypted."""
        return replace(self, private=self.locks[lock], variants=(), locks={})

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join(f"{axis}={label}" for axis, label in self.labels.items())

    @property
    def ann(self) -> Path:
        """Weights of the network that is trained here."""
        return self.path / "ann.safetensors"

    @property
    def synthetic(self) -> Path:
        """Folder of the synthetic images."""
        return self.path / f"synthetic-{self._hash('synthesis')}"

    @property
    def converted(self) -> Path:
        """The converted network, before encryption; on a thief's view of it attacks are controls."""
        return self.path / f"converted-{self._hash('synthesis', 'publishing')}.safetensors"

    @property
    def published(self) -> Path:
        """The encrypted network: what is published."""
        return self.encrypted(self.private.encryption)

    def encrypted(self, config: EncryptionConfig) -> Path:
        """Return the file of the network that is encrypted in some way."""
        decides = {key: value for key, value in asdict(config).items() if key != "chunk"}  # of memory alone
        return self.path / f"published-{self._hash('synthesis', 'publishing', encryption=decides)}.safetensors"

    @property
    def results(self) -> Path:
        """What was measured."""
        networks = [file.name for file in (self.published, *map(self.encrypted, self.variants))]
        measured = {"control": self.control, "curve": self.curve, "test_images": self.config.data.test_images}
        return self.path / f"results-{digest_of({'networks': networks, **measured})}.json"

    def stolen(self, target: str, attack: str) -> Path:
        """Return what an attack got out of a network, without its suffix."""
        network = {"ann": self.synthetic, "converted": self.converted}.get(target)
        if network is None:
            network = self.locked(target).published if target in self.locks else self.published
        listed = ("attacks", "networks")  # which others are tried changes nothing
        asked = {key: value for key, value in asdict(self.attack).items() if key not in listed}
        digest = digest_of({"network": network.name, "test_images": self.config.data.test_images, **asked})
        return self.path / "attacks" / f"{slug(target)}-{attack}-{digest}"

    def _hash(self, *sections: str, **more: Any) -> str:
        """Return a hash of the network and of what else decides a file: sections by name, and other things."""
        return digest_of(
            {"network": self.network, **{name: asdict(getattr(self.private, name)) for name in sections}, **more}
        )


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


def trained_network(config: Config) -> str:
    """Return a hash of what decides the weights of a network that is trained here, and how it is read."""
    sections = {name: asdict(getattr(config, name)) for name in ("data", "model", "training", "quantization")}
    del sections["data"]["test_images"]  # parts of the splits are chosen apart
    plugins = [f"{plugin.name} {plugin.version}" for plugin in used(config)]
    others = {"seed": config.run.seed, "max_pooling": config.conversion.max_pooling, "plugins": plugins}
    return digest_of({**sections, **others})


def network_of_run(run: Path) -> str:
    """Return a hash of a finished run's network, which is another one when the run is played again."""
    return hashlib.sha256(run_file(run).read_bytes()).hexdigest()[:10]


def run_file(folder: Path) -> Path:
    """Return the file of a run's network: of an S-run its spiking one, whose biases its ANN lacks."""
    return folder / (SNN_FILE if (folder / SNN_FILE).exists() else ANN_FILE)


def folder_of(study: Path, config: Config, network: str) -> Path:
    """Name the folder of a network that is trained here, after what it is and what decides its weights."""
    return study / slug(f"{config.data.source}-{config.model.name}-{config.run.seed}-{network}")


def digest_of(decides: Mapping[str, Any]) -> str:
    """Return ten digits that follow from some options."""
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:10]


def slug(text: str) -> str:
    """Return a text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text)
