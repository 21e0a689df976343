"""Events that others have laid on the disk: DVS128 Gesture, CIFAR10-DVS and the Spiking Heidelberg Digits.

Their folders are those of tonic's data sets of the same names, which downloads them. Nothing of tonic is needed to read
them, but a library for two of the formats.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snnfl.config import ConfigError, DataConfig
from snnfl.data.by_hand import BY_HAND, missing
from snnfl.data.dataset import Dataset
from snnfl.data.events import Events, event_dataset, frames_of, read_frames
from snnfl.data.sources import register

SIDE = 128
GESTURES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter-clockwise",
    "left arm clockwise",
    "left arm counter-clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEST_SHARE = 10
"""One in so many of CIFAR10-DVS's recordings of each class is for testing."""

CHANNELS = 700
"""Of the artificial cochlea that the Heidelberg digits come from."""

OPTIONS = ("time_bins", "binning", "resolution")


@register("dvs128_gesture", uses=OPTIONS)
def dvs128_gesture(root: Path, config: DataConfig) -> Dataset:
    """Read 11 gestures of 29 people, seen by an event camera of 128x128 pixels (Amir et al. 2017), in 16 time steps.

    The recordings are tonic's, cut into one gesture each. The published test split is of the last six people; the users
    are the other 23.
    """
    folder = _folder("dvs128_gesture", root)
    frames = frames_of(config, bins=16, sensor=(2, SIDE, SIDE))
    images, people, labels = {}, {}, {}
    for split in ("Train", "Test"):
        paths = sorted((folder / f"ibmGesture{split}").glob("user*_*/*.npy"))
        if not paths:
            raise missing("dvs128_gesture", root, f"ibmGesture{split}/user*_*/*.npy")
        people[split], labels[split] = torch.tensor([_person_and_gesture(path) for path in paths]).unbind(1)
        recordings = partial(map, partial(_read, "dvs128_gesture", _gesture, SIDE), paths)
        images[split] = read_frames(len(paths), recordings, frames, paths=paths, folder=folder)
    return event_dataset(
        "dvs128_gesture",
        images["Train"],
        images["Test"],
        train_labels=labels["Train"],
        test_labels=labels["Test"],
        class_names=GESTURES,
        users=people["Train"],
    )


@register("cifar10_dvs", uses=OPTIONS)
def cifar10_dvs(root: Path, config: DataConfig) -> Dataset:
    """Read 10,000 moving pictures of CIFAR-10, seen by an event camera of 128x128 pixels (Li et al. 2017), in 10 steps.

    There is no published test split: it is the last tenth of each class, by the numbers of the files, as is usual.
    """
    folder = _folder("cifar10_dvs", root)
    frames = frames_of(config, bins=10, sensor=(2, SIDE, SIDE))
    paths: dict[str, list[Path]] = {"train": [], "test": []}
    for name in OBJECTS:
        some = sorted((folder / name).glob("*.aedat4"), key=lambda path: (_number(path), path.name))
        if len(some) < 2:
            raise missing("cifar10_dvs", root, f"{name}/*.aedat4")
        held = max(1, len(some) // TEST_SHARE)
        paths["train"] += some[:-held]
        paths["test"] += some[-held:]
    read = partial(_read, "cifar10_dvs", _object, SIDE)
    images, labels = {}, {}
    for split, some in paths.items():
        images[split] = read_frames(len(some), partial(map, read, some), frames, paths=some, folder=folder)
        labels[split] = torch.tensor([OBJECTS.index(path.parent.name) for path in some])
    return event_dataset(
        "cifar10_dvs",
        images["train"],
        images["test"],
        train_labels=labels["train"],
        test_labels=labels["test"],
        class_names=OBJECTS,
    )


@register("shd", uses=OPTIONS)
def shd(root: Path, config: DataConfig) -> Dataset:
    """Read 10,420 spoken digits in English and German as spikes of 700 channels (Cramer et al. 2022), in 100 steps.

    The published test split has two speakers of its own and new recordings of the others. The users are the speakers.
    """
    folder = _folder("shd", root)
    frames = frames_of(config, bins=100, sensor=(1, 1, CHANNELS))
    library = _library("h5py", "shd")
    images, labels, speakers, class_names = {}, {}, {}, ()
    for split in ("train", "test"):
        path = folder / f"shd_{split}.h5"
        if not path.is_file():
            raise missing("shd", root, path.name)
        try:
            with library.File(path, "r") as file:
                labels[split] = torch.from_numpy(file["labels"][()].astype(np.int64))
                speakers[split] = torch.from_numpy(file["extra/speaker"][()].astype(np.int64))
                class_names = tuple(name.decode() for name in file["extra/keys"][()])
                recordings = partial(_spikes, file["spikes/times"], file["spikes/units"], path)
                images[split] = read_frames(len(labels[split]), recordings, frames, paths=[path], folder=folder)
        except (OSError, KeyError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise _damaged("shd", path, str(error)) from None
    return event_dataset(
        "shd",
        images["train"],
        images["test"],
        train_labels=labels["train"],
        test_labels=labels["test"],
        class_names=class_names,
        users=speakers["train"],
    )


def _folder(name: str, root: Path) -> Path:
    folder = root / BY_HAND[name].folder
    if not folder.is_dir():
        raise missing(name, root)
    return folder


def _library(name: str, source: str) -> Any:
    """Import what an extra brings.

    Raises:
        ConfigError: If it isn't installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"data.source={source}: its files are read by {name}, which is not installed; type: pip install {name}"
        ) from None


def _read(source: str, read: Callable[[Path], tuple[Any, ...]], side: int, path: Path) -> Events:
    """Read a recording as ``(times, channels, rows, columns)``, whatever its format.

    Raises:
        ConfigError: Naming the file, if it is damaged.
    """
    try:
        times, channels, rows, columns = (np.asarray(array).astype(np.int64) for array in read(path))
    except ConfigError:  # the library isn't there
        raise
    except Exception as error:  # a damaged file makes the libraries raise anything
        raise _damaged(source, path, f"cannot be read ({error})") from None
    if not len(times):
        raise _damaged(source, path, "has no event")
    if min(rows.min(), columns.min()) < 0 or max(rows.max(), columns.max()) >= side:
        raise _damaged(source, path, f"has an event outside of {side}x{side} pixels")
    return Events(times=times, channels=(channels > 0).astype(np.int64), rows=rows, columns=columns)


def _person_and_gesture(path: Path) -> tuple[int, int]:
    place = re.fullmatch(r"user(\d+)_.*/(\d+)", f"{path.parent.name}/{path.stem}")
    if place is None:
        raise _damaged("dvs128_gesture", path, "is not called userNN_LIGHT/GESTURE.npy")
    return int(place[1]), int(place[2])


def _gesture(path: Path) -> tuple[Any, ...]:
    """Read ``[events, 4]``: column, row, polarity, time in ms."""
    table = np.load(path)
    return table[:, 3], table[:, 2], table[:, 1], table[:, 0]


def _object(path: Path) -> tuple[Any, ...]:
    """Read the first stream of events of a file in AEDAT 4: time in µs, column, row, polarity."""
    decoder = _library("aedat", "cifar10_dvs").Decoder(str(path))
    stream = min(number for number, kind in decoder.id_to_stream().items() if kind["type"] == "events")
    packets = [packet["events"] for packet in decoder if packet["stream_id"] == stream]
    events = np.concatenate(packets)
    times, columns, rows, polarities = (events[name] for name in events.dtype.names or ())
    return times, polarities, rows, columns


def _spikes(times: Any, units: Any, path: Path) -> Iterator[Events]:
    """Yield recordings whose spikes have a time in seconds and a channel."""
    for some, channels in zip(times, units, strict=True):
        columns = np.asarray(channels).astype(np.int64)
        if not len(columns) or columns.max() >= CHANNELS:
            raise _damaged("shd", path, f"has a recording without spikes, or with one outside of {CHANNELS} channels")
        zeros = np.zeros_like(columns)
        microseconds = (np.asarray(some).astype(np.float64) * 1e6).astype(np.int64)
        yield Events(times=microseconds, channels=zeros, rows=zeros, columns=columns)


def _number(path: Path) -> int:
    """Return the last number in the name of a file, 0 if there is none."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else 0


def _damaged(source: str, path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"data.source={source}: {path} {' '.join(reason.split())}; unpack the archive that it is from anew"
    )
