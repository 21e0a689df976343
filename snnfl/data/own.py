"""Data of each node's own: what the run states of them, where they lie, and how they become a data set.

A run states classes and shape (``data.classes``, ``data.shape`` or ``data.features``), and how values are normalised.
A node reads what its own configuration names, splits off its test part, and fits or is refused. In a simulation the
folder ``clients/`` below ``data.root`` holds a folder or file for each client; a server's own data, on which it
evaluates, are ``server`` beside it.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from snnfl.config import OWN, READING, ConfigError, DataConfig
from snnfl.config.own_data import channels, is_pictures
from snnfl.data.cache import cached, fingerprint
from snnfl.data.dataset import Dataset
from snnfl.data.embedded import stratified_split
from snnfl.data.own_samples import READERS, OwnDataError, Samples, checked, reader_of
from snnfl.data.sources import register
from snnfl.registry import OURS

CLIENTS, SERVER = "clients", "server"
"""Below ``data.root``: what each client of a simulation holds, and what the server does."""

_OPTIONS = ("classes", "shape", "features", "mean", "std", "test_share")


@register(OWN, uses=_OPTIONS)
def agreed(root: Path, config: DataConfig) -> Dataset:
    """Return a data set without samples: the shape, the classes and the normalisation that a run states."""
    shape, pictures = config.sample_shape, is_pictures(config)
    size = channels(config)
    mean, std = config.mean or (0.5 if pictures else 0.0,), config.std or (0.5 if pictures else 1.0,)
    nothing = torch.empty(0, *shape, dtype=torch.uint8 if len(shape) >= 3 else torch.float32)
    none = torch.empty(0, dtype=torch.int64)
    return Dataset(
        name=OWN,
        train_images=nothing,
        train_labels=none,
        test_images=nothing,
        test_labels=none,
        class_names=config.classes,
        mean=torch.tensor(mean, dtype=torch.float32).expand(size).clone(),
        std=torch.tensor(std, dtype=torch.float32).expand(size).clone(),
        sequence=len(shape) in (2, 4),
    )


def read_own(place: Path, config: DataConfig) -> Dataset:
    """Read a node's own data and split off its test part; the second call in a process returns the same object.

    The part is ``data.test_share`` of the samples and, as nearly as can be, of each class. Which samples it holds
    depends on the labels in their order alone, never on the run's seed: all runs test on the same.

    Args:
        place: A folder or a file, or what a plug-in's reader takes for one.
        config: Its ``classes``, ``shape`` or ``features``, ``mean``, ``std`` and ``test_share`` decide.

    Raises:
        OwnDataError: If nothing is there, it cannot be read, or doesn't fit what the run states.
    """
    return _read(place, _stated(config))


def server_data(root: Path, config: DataConfig) -> Dataset:
    """Return what the server evaluates on: all samples of its own data, and none if it has none.

    Args:
        root: Folder of the data; ``server`` in it, or ``server.npz`` and its like.
        config: As for :func:`read_own`.

    Raises:
        OwnDataError: As :func:`read_own`.
        ConfigError: If there are several, or the folder is there but cannot be read.
    """
    found = _named(root, SERVER)
    if not found:
        return agreed(root, config)
    if len(found) > 1:
        raise ConfigError(f"data.root={root}: holds both {found[0].name} and {found[1].name}; keep one")
    samples = _samples(found[0], _stated(config))
    return replace(agreed(root, config), test_images=samples.values, test_labels=samples.labels)


def client_places(root: Path, clients: int) -> tuple[Path, ...]:
    """Return what each client of a simulation holds: what lies in ``clients/`` below a folder, in the order of names.

    Raises:
        ConfigError: If the folder isn't there, or doesn't hold one for each client.
    """
    folder = root / CLIENTS
    try:
        places = tuple(sorted(path for path in folder.iterdir() if path.name[0] not in "._"))
    except OSError as error:
        raise ConfigError(
            f"data.root={root}: {folder} cannot be read ({error.strerror}); data.source=own simulates a client for "
            f"each folder or file in it (set data.root to the folder that holds {CLIENTS}/)"
        ) from None
    if len(places) != clients:
        some = ", ".join(path.name for path in places[:4]) + (", …" if len(places) > 4 else "")
        raise ConfigError(
            f"data.clients={clients}: {folder} holds {len(places)} ({some}), one for each client; say "
            f"data.clients={len(places)}"
        )
    return places


def _stated(config: DataConfig) -> DataConfig:
    """Return what decides how own data are read, and of all else the defaults."""
    return DataConfig(source=OWN, **{name: getattr(config, name) for name in READING if name in _OPTIONS})


def _named(root: Path, stem: str) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.name == stem or (path.stem == stem and not path.is_dir()))
    except FileNotFoundError:  # a server without data needs no folder for them
        return []
    except OSError as error:
        raise ConfigError(f"data.root={root}: cannot be read ({error.strerror}); name a folder") from None


@functools.cache
def _read(place: Path, config: DataConfig) -> Dataset:
    samples = _samples(place, config)
    count = len(samples.labels)
    train, test = map(torch.from_numpy, map(np.sort, stratified_split(samples.labels.numpy(), config.test_share)))
    if not len(train):
        raise OwnDataError(
            f"{place}: holds {count} sample, and data.test_share={config.test_share} of them are for testing; add some",
            f"it has no training samples beside those of data.test_share={config.test_share}",
        )
    return replace(
        agreed(place, config),
        train_images=samples.values[train],
        train_labels=samples.labels[train],
        test_images=samples.values[test],
        test_labels=samples.labels[test],
    )


def _samples(place: Path, config: DataConfig) -> Samples:
    """Read all samples; of a folder what an earlier process has made of it, if nothing has changed since."""
    name = reader_of(place)
    read = READERS.find(name).read

    def made() -> dict[str, torch.Tensor]:
        found: Samples = READERS.made(name, lambda: read(place, config), Samples)
        found = checked(place, found, config)
        return {"values": found.values, "labels": found.labels}

    try:
        if not place.is_dir() or READERS.homes[name].partition(".")[0] not in OURS:  # who knows what a plug-in reads
            return Samples(**made())
        shown = (path for path in place.iterdir() if path.name[0] not in "._")
        linked = [path for path in shown if path.is_symlink() and path.is_dir()]  # which rglob doesn't enter
        files = (path for folder in (place, *linked) for path in folder.rglob("*") if path.is_file())
        paths = sorted(path for path in files if not _hidden(path, place))
        key = (name, config.classes, config.sample_shape, config.features, fingerprint(paths, place))
        return Samples(**cached(place, key, made, private=True))
    except OSError as error:
        text = f"{place}: cannot be read ({error.filename}: {error.strerror})"
        raise OwnDataError(text, "its data cannot be read") from None


def _hidden(path: Path, place: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(place).parts)
