"""N-MNIST: MNIST's digits, seen by an event camera in three quick movements (Orchard et al. 2015)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from snnfl.config import ConfigError, DataConfig
from snnfl.data.by_hand import missing
from snnfl.data.dataset import Dataset
from snnfl.data.events import Events, event_dataset, frames_of, read_frames
from snnfl.data.sources import register

FOLDERS = ("NMNIST", "N-MNIST")
SIDE = 34
BYTES = 5
OVERFLOW_ROW, OVERFLOW_TIME = 240, 2**13
"""A row that no pixel has says that the sensor's clock went on by so many microseconds."""


@register("nmnist", uses=("time_bins", "binning", "resolution"))
def nmnist(root: Path, config: DataConfig) -> Dataset:
    """Read recordings of 34x34 pixels and two polarities, 60,000 for training and 10,000 for testing, or a part.

    By default each becomes 10 time steps. Classes and files come in the order of their names.
    """
    folder = next((root / name for name in FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        raise missing("nmnist", root)
    frames = frames_of(config, bins=10, sensor=(2, SIDE, SIDE))
    digits = tuple(map(str, range(10)))
    images, labels = {}, {}
    for split in ("Train", "Test"):
        paths = sorted(path for digit in digits for path in (folder / split / digit).glob("*.bin"))
        if not paths:
            raise missing("nmnist", root, f"{split}/0/*.bin")
        recordings = partial(map, read, paths)
        images[split] = read_frames(len(paths), recordings, frames, paths=paths, folder=folder)
        labels[split] = torch.tensor([int(path.parent.name) for path in paths])
    return event_dataset(
        "nmnist",
        images["Train"],
        images["Test"],
        train_labels=labels["Train"],
        test_labels=labels["Test"],
        class_names=digits,
    )


def read(path: Path) -> Events:
    """Read a file of 40-bit events: column 8 bit, row 8 bit, polarity 1 bit, time in µs 23 bit.

    Raises:
        ConfigError: Naming the file, if it cannot be read, ends within an event, has none, or one outside the sensor.
    """
    try:
        table = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from None
    if len(table) % BYTES:
        raise _damaged(path, f"ends within an event ({len(table)} bytes)")
    table = table.reshape(-1, BYTES).astype(np.int64)
    columns, rows = table[:, 0], table[:, 1]
    times = (table[:, 2] & 127) << 16 | table[:, 3] << 8 | table[:, 4]
    overflows = rows == OVERFLOW_ROW
    if overflows.any():
        times = times + OVERFLOW_TIME * np.cumsum(overflows)
    seen = ~overflows
    if not seen.any():
        raise _damaged(path, "has no event")
    events = Events(times=times[seen], channels=table[seen, 2] >> 7, rows=rows[seen], columns=columns[seen])
    if max(events.rows.max(), events.columns.max()) >= SIDE:
        raise _damaged(path, f"has an event outside of {SIDE}x{SIDE} pixels")
    return events


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"data.source=nmnist: {path} {reason}; unpack the archive that it is from anew")
