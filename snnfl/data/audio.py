"""Recordings of sound: a user's own folders, and Speech Commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snnfl.config import ConfigError, DataConfig
from snnfl.data import cache
from snnfl.data.by_hand import BY_HAND, missing
from snnfl.data.dataset import Dataset
from snnfl.data.own_folders import find_files, numbered, own_place
from snnfl.data.series import series_dataset
from snnfl.data.sound import Bands, Numbers, read_wave, resample
from snnfl.data.sources import register

FRAMES, BANDS = 50, 40
OPTIONS = ("time_bins", "resolution", "filters")
SPEECH_RATE = 16_000


@register("audio_folder", uses=("folder", *OPTIONS))
def audio_folder(root: Path, config: DataConfig) -> Dataset:
    """Read your own recordings: a folder of WAV files for each class, as frequency bands over time.

    Recordings of several rates are brought to the lowest.
    """
    folder = own_place(root, config)
    if not folder.is_dir():
        raise ConfigError(f"data.folder={config.folder}: expected a folder of WAV files")
    files = find_files(folder, ".wav", config)
    images = band_frames(files.paths, config, folder, rate=None)
    return series_dataset(
        "audio_folder",
        images[files.train],
        images[files.test],
        train_labels=files.labels[files.train],
        test_labels=files.labels[files.test],
        class_names=files.class_names,
        users=None if files.users is None else files.users[files.train],
        stated_kind="audio",
    )


@register("speech_commands", uses=OPTIONS)
def speech_commands(root: Path, config: DataConfig) -> Dataset:
    """Read 35 spoken words, 84,843 recordings for training and 11,005 for testing (Warden 2018).

    The published validation split is left out. The users are the speakers.
    """
    folder = root / BY_HAND["speech_commands"].folder
    lists = {name: folder / f"{name}_list.txt" for name in ("testing", "validation")}
    if absent := [path for path in lists.values() if not path.is_file()]:
        raise missing("speech_commands", root, absent[0].name)
    names = {name: set(path.read_text(encoding="utf-8").split()) for name, path in lists.items()}
    paths = sorted(path for path in folder.glob("*/*.wav") if path.parent.name[0] != "_")
    if not paths:
        raise missing("speech_commands", root, "*/*.wav")
    words = [f"{path.parent.name}/{path.name}" for path in paths]
    classes = sorted({path.parent.name for path in paths})
    test = [path for path, word in zip(paths, words, strict=True) if word in names["testing"]]
    train = [
        path
        for path, word in zip(paths, words, strict=True)
        if word not in names["testing"] and word not in names["validation"]
    ]
    if not train or not test:
        raise missing("speech_commands", root, "the recordings of training and testing")
    return series_dataset(
        "speech_commands",
        band_frames(train, config, folder, rate=SPEECH_RATE),
        band_frames(test, config, folder, rate=SPEECH_RATE),
        train_labels=torch.tensor([classes.index(path.parent.name) for path in train]),
        test_labels=torch.tensor([classes.index(path.parent.name) for path in test]),
        class_names=tuple(classes),
        users=numbered([path.name.partition("_")[0] for path in train]),
        stated_kind="audio",
    )


def band_frames(paths: Sequence[Path], config: DataConfig, folder: Path, *, rate: int | None) -> Tensor:
    """Return the bands of recordings over time, from the cache beside the data if they are there.

    Args:
        paths: A recording each.
        config: Says how many frames and bands, and of which kind.
        folder: Of the data set, which ``paths`` lie below.
        rate: Samples per second that they are brought to; ``None`` for the lowest of them.

    Returns:
        ``float32`` of shape ``[recordings, T, bands]``.
    """
    frames, bands = config.time_bins or FRAMES, config.resolution or BANDS

    def make() -> dict[str, Tensor]:
        common = rate or min(_wave(config, path)[1] for path in paths)
        measure = Bands(frames, bands, config.filters, common)
        images = np.empty((len(paths), frames, bands), np.float32)
        for place, path in zip(images, paths, strict=True):
            wave, own = _wave(config, path)
            place[...] = measure.energies(resample(wave, own, common))
        return {"bands": torch.from_numpy(images)}

    key = (frames, bands, config.filters, rate, cache.fingerprint(paths, folder))
    return cache.cached(folder, key, make)["bands"]


def _wave(config: DataConfig, path: Path) -> tuple[Numbers, int]:
    try:
        return read_wave(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"data.source={config.source}: {path} is no WAV file ({reason}); replace it") from None
