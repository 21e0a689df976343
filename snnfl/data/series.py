"""Series of measurements: a user's own, and those that seglearn and aeon bring along."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from snnfl.config import ConfigError, DataConfig
from snnfl.data.dataset import Dataset
from snnfl.data.embedded import standardisation, stratified_split
from snnfl.data.own_folders import find_files, numbered, own_place
from snnfl.data.sources import register

Numbers: TypeAlias = np.ndarray[Any, Any]

WATCH_STEPS = 100
"""Two seconds."""


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """Series of any length, each for training or for testing.

    Attributes:
        values: ``float32``, each of shape ``[steps, features]``.
        names: What errors call them.
        labels: ``int64`` of shape ``[recordings]``.
        class_names: One per label.
        users: Whose they are, ``int64`` of shape ``[recordings]``, where that is known.
        train: Positions of those for training.
        test: Of the others.
    """

    values: Sequence[Numbers]
    names: Sequence[str]
    labels: Tensor
    class_names: tuple[str, ...]
    users: Tensor | None
    train: Tensor
    test: Tensor


@register("series", uses=("folder", "time_bins"))
def series(root: Path, config: DataConfig) -> Dataset:
    """Read your own series: a folder of CSV files for each class, or a file of ``x``, ``y`` and maybe ``users``."""
    place = own_place(root, config)
    recordings = _tables(place, config) if place.is_dir() else _arrays(place)
    widths = [values.shape[1] for values in recordings.values]
    if odd := [index for index, width in enumerate(widths) if width != widths[0]]:
        raise ConfigError(
            f"data.source=series: {recordings.names[odd[0]]} has {widths[odd[0]]} columns, {recordings.names[0]} has "
            f"{widths[0]}; give all the same"
        )
    return _windowed("series", recordings, config.time_bins or min(map(len, recordings.values)))


@register("watch", uses=("time_bins",))
def watch(root: Path, config: DataConfig) -> Dataset:
    """Read seven shoulder exercises of ten people by a watch's six inertial axes at 50 Hz (Burns et al. 2018).

    A fifth of the 140 recordings is for testing, the same share of each exercise; all are cut into windows.
    """
    path = _package("seglearn", "watch") / "data" / "watch_dataset.npy"
    content = np.load(path, allow_pickle=True).item()  # by a package that is installed here, which may run code anyhow
    labels = torch.from_numpy(np.asarray(content["y"], np.int64))
    train, test = _split(labels)
    recordings = Recordings(
        values=[np.asarray(values, np.float32) for values in content["X"]],
        names=[f"{path.name} X[{index}]" for index in range(len(labels))],
        labels=labels,
        class_names=tuple(map(str, content["y_labels"])),
        users=torch.from_numpy(np.asarray(content["subject"], np.int64)),
        train=train,
        test=test,
    )
    return _windowed("watch", recordings, config.time_bins or WATCH_STEPS)


@register("basic_motions")
def basic_motions(root: Path) -> Dataset:
    """Read 80 series of 100 steps of 6 inertial axes in 4 motions (Bagnall et al. 2018)."""
    return _archive("basic_motions", "BasicMotions", "BasicMotions")


@register("italy_power_demand")
def italy_power_demand(root: Path) -> Dataset:
    """Read 1,096 days of 24 hours of Italy's power demand, in summer or in winter (Keogh et al. 2006)."""
    return _archive("italy_power_demand", "ItalyPowerDemand", "ItalyPowerDemand")


@register("japanese_vowels")
def japanese_vowels(root: Path) -> Dataset:
    """Read 640 utterances of nine speakers by 12 coefficients, brought to 25 steps (Kudo et al. 1999)."""
    return _archive("japanese_vowels", "JapaneseVowels", "JapaneseVowels_eq")


def windows(recording: Numbers, length: int) -> Numbers:
    """Cut a recording into windows without overlap; what is left over at its end is left out.

    Args:
        recording: Shape ``[steps, features]``.
        length: Steps of a window.

    Returns:
        Shape ``[windows, length, features]``.
    """
    count = len(recording) // length
    return recording[: count * length].reshape(count, length, recording.shape[1])


def series_dataset(name: str, train: Tensor, test: Tensor, **others: Any) -> Dataset:
    """Make a data set of sequences, whose features are standardised over the training split; constant ones are 0."""
    mean, std = standardisation(train, axis=2)
    return Dataset(
        name=name,
        train_images=train,
        test_images=test,
        mean=mean,
        std=torch.where(std > 0, std, torch.ones_like(std)),
        sequence=True,
        **others,
    )


def _windowed(name: str, recordings: Recordings, length: int) -> Dataset:
    """Cut recordings into windows, those of a recording all for training or all for testing."""
    for values, where in zip(recordings.values, recordings.names, strict=True):
        if len(values) < length:
            raise ConfigError(f"data.time_bins={length}: {where} has {len(values)} time steps; take at most as many")
        if not np.isfinite(values).all():
            raise ConfigError(f"data.source={name}: {where} holds a NaN or an infinity; leave it out")
    parts = [torch.from_numpy(windows(values, length)) for values in recordings.values]
    counts = torch.tensor([len(part) for part in parts])

    def cut(chosen: Tensor) -> Tensor:
        return torch.cat([parts[index] for index in chosen.tolist()])

    def repeated(values: Tensor, chosen: Tensor) -> Tensor:
        return values[chosen].repeat_interleave(counts[chosen])

    return series_dataset(
        name,
        cut(recordings.train),
        cut(recordings.test),
        train_labels=repeated(recordings.labels, recordings.train),
        test_labels=repeated(recordings.labels, recordings.test),
        class_names=recordings.class_names,
        users=None if recordings.users is None else repeated(recordings.users, recordings.train),
    )


def _split(labels: Tensor) -> tuple[Tensor, Tensor]:
    train, test = (torch.from_numpy(np.sort(part)) for part in stratified_split(labels.numpy()))
    return train, test


def _tables(folder: Path, config: DataConfig) -> Recordings:
    files = find_files(folder, ".csv", config)
    return Recordings(
        values=[_table(path) for path in files.paths],
        names=[str(path) for path in files.paths],
        labels=files.labels,
        class_names=files.class_names,
        users=files.users,
        train=files.train,
        test=files.test,
    )


def _table(path: Path) -> Numbers:
    """Read a CSV file of a row for each time step, with or without a line of names above."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.source=series: {path} cannot be read ({error}); expected rows of numbers") from None
    rows, heading = list[list[float]](), _heading(lines)
    for number, line in enumerate(lines[heading:], heading + 1):
        if not line.strip():
            continue
        try:
            rows.append(list(map(float, line.split(","))))
            if len(rows[-1]) != len(rows[0]):
                raise ValueError(f"{len(rows[-1])} numbers, and {len(rows[0])} in the first row")
        except ValueError as error:
            raise ConfigError(
                f"data.source=series: {path} cannot be read, line {number}: {error}; expected rows of numbers"
            ) from None
    table = np.array(rows, np.float32)
    if not table.size:
        raise ConfigError(f"data.source=series: {path} has no rows; expected rows of numbers")
    return table


def _heading(lines: Sequence[str]) -> int:
    """Count the lines of names above a table: one, if its first line holds something else than numbers."""
    try:
        list(map(float, lines[0].split(",")))
    except ValueError:
        return 1
    except IndexError:
        return 0
    return 0


def _arrays(path: Path) -> Recordings:
    """Read ``x [N, T, F]`` or ``[N, T]``, ``y [N]`` and maybe ``users [N]``."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        x, y, users = arrays["x"].astype(np.float32), arrays["y"], arrays.get("users")
    except KeyError as error:
        raise ConfigError(f"data.source=series: {path} has no array {error}; expected x, y and maybe users") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"data.source=series: {path} cannot be read as .npz ({error})") from None
    if x.ndim == 2:
        x = x[:, :, None]
    shapes = [array.shape for array in (y, users) if array is not None]
    if x.ndim != 3 or not len(x) or any(shape != (len(x),) for shape in shapes):
        raise ConfigError(
            f"data.source=series: {path} has x of {list(x.shape)} beside {' and '.join(str(list(s)) for s in shapes)}; "
            "expected x [N, T, F], y [N] and maybe users [N]"
        )
    classes, numbers = np.unique(y, return_inverse=True)
    labels = torch.from_numpy(numbers)
    train, test = _split(labels)
    return Recordings(
        values=list(x),
        names=[f"{path} x[{index}]" for index in range(len(x))],
        labels=labels,
        class_names=tuple(map(str, classes)),
        users=None if users is None else numbered(users),
        train=train,
        test=test,
    )


def _package(name: str, source: str) -> Path:
    """Return the folder of an installed package, without importing it: aeon's import takes seconds.

    Raises:
        ConfigError: If it isn't installed.
    """
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ConfigError(f"data.source={source}: comes with {name}, which is not installed; type: pip install {name}")
    return Path(found.origin).parent


def _archive(name: str, folder: str, stem: str) -> Dataset:
    """Read a data set of the time series classification archive, as aeon brings it along, with its own splits."""
    place = _package("aeon", name) / "datasets" / "data" / folder
    splits = {split: _read_ts(name, place / f"{stem}_{split}.ts") for split in ("TRAIN", "TEST")}
    class_names = tuple(sorted(set(splits["TRAIN"][1])))
    labels = {
        split: torch.tensor([class_names.index(value) for value in values]) for split, (_, values) in splits.items()
    }
    return series_dataset(
        name,
        torch.from_numpy(splits["TRAIN"][0]),
        torch.from_numpy(splits["TEST"][0]),
        train_labels=labels["TRAIN"],
        test_labels=labels["TEST"],
        class_names=class_names,
    )


def _read_ts(name: str, path: Path) -> tuple[Numbers, list[str]]:
    """Read the archive's format: after ``@data`` a line for each series, ``dimension:dimension:…:class``."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        start = [line.strip().lower() for line in lines].index("@data") + 1
        rows = [line.split(":") for line in lines[start:] if line.strip()]
        values = [[list(map(float, dimension.split(","))) for dimension in row[:-1]] for row in rows]
        return np.array(values, np.float32).transpose(0, 2, 1), [row[-1].strip() for row in rows]
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.source={name}: {path} cannot be read ({error}); install aeon anew") from None
