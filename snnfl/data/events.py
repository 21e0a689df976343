"""Event recordings as frames: how many events each pixel has in each time step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from snnfl.config import ConfigError, DataConfig
from snnfl.data import cache
from snnfl.data.dataset import Dataset

Numbers: TypeAlias = np.ndarray[Any, Any]

MOST = 255
"""Events that a count in one byte can tell; more are counted as so many."""


@dataclass(frozen=True, kw_only=True)
class Events:
    """One recording: the events in the order in which they came, each array of shape ``[events]``.

    Attributes:
        times: ``int64``, in any unit.
        channels: Polarity, 0 or 1.
        rows: Of the pixel.
        columns: Likewise.
    """

    times: Numbers
    channels: Numbers
    rows: Numbers
    columns: Numbers


@dataclass(frozen=True)
class Frames:
    """How recordings become frames.

    Attributes:
        bins: Time steps T of a recording.
        binning: Whether steps are of equal duration or hold equally many events.
        sensor: Channels, rows and columns; one row for a line of sensors.
        resolution: Rows and columns of a frame, whose blocks of pixels are summed; one row stays one.
    """

    bins: int
    binning: Literal["time", "count"]
    sensor: tuple[int, int, int]
    resolution: int

    @property
    def step_shape(self) -> tuple[int, ...]:
        """Shape of one time step: ``(channels, rows, columns)``, of a line of sensors ``(columns,)``."""
        channels, rows, _ = self.sensor
        return (self.resolution,) if rows == 1 else (channels, self.resolution, self.resolution)

    def count(self, events: Events) -> Numbers:
        """Count the events of a recording by time step and pixel.

        With ``t_0`` and ``t_1`` the first and the last time, an event at ``t`` is in step
        ``floor((t - t_0) T / (t_1 - t_0 + 1))``; the k-th of n events, counted from 0, in step ``floor(k T / n)``. So
        no event is left out.

        Returns:
            ``uint8`` of shape ``[T, *step_shape]``; 255 where there are more.
        """
        times, number = events.times, len(events.times)
        if self.binning == "time":
            first = times.min()
            steps = (times - first) * self.bins // (times.max() - first + 1)
        else:
            steps = np.arange(number) * self.bins // number
        _, rows, columns = self.sensor
        width = self.resolution
        height = 1 if rows == 1 else width
        cells = steps * self.sensor[0] + events.channels
        cells = cells * height + events.rows * height // rows
        cells = cells * width + events.columns * width // columns
        size = self.bins * self.sensor[0] * height * width
        counts = np.bincount(cells, minlength=size)
        return np.minimum(counts, MOST).astype(np.uint8).reshape(self.bins, *self.step_shape)


def frames_of(config: DataConfig, *, bins: int, sensor: tuple[int, int, int]) -> Frames:
    """Return how a source makes frames, from the options that all sources of events use.

    Args:
        config: Decides; what is null is the source's own.
        bins: Of the source.
        sensor: Its channels, rows and columns.

    Raises:
        ConfigError: If the sensor has no blocks of equal size for a resolution.
    """
    width = sensor[2]
    resolution = config.resolution or width
    if width % resolution:
        divisors = ", ".join(str(width // block) for block in range(1, width + 1) if width % block == 0)
        raise ConfigError(
            f"data.resolution={resolution}: the sensor of {config.source} is {width} wide, and blocks of equal size "
            f"are summed; take one of {divisors}"
        )
    return Frames(config.time_bins or bins, config.binning, sensor, resolution)


def read_frames(
    number: int, recordings: Callable[[], Iterable[Events]], frames: Frames, *, paths: Sequence[Path], folder: Path
) -> Tensor:
    """Return the frames of recordings, from the cache beside the data if they are there.

    Args:
        number: Of recordings.
        recordings: Reads them, each with at least one event.
        frames: How they become frames.
        paths: The files that hold them.
        folder: Of the data set, which ``paths`` lie below.

    Returns:
        ``uint8`` of shape ``[recordings, T, *step_shape]``.
    """

    def make() -> dict[str, Tensor]:
        counts = np.empty((number, frames.bins, *frames.step_shape), np.uint8)
        for place, events in zip(counts, recordings(), strict=True):
            place[...] = frames.count(events)
        return {"frames": torch.from_numpy(counts)}

    return cache.cached(folder, (frames, cache.fingerprint(paths, folder)), make)["frames"]


def event_dataset(name: str, train: Tensor, test: Tensor, **others: Any) -> Dataset:
    """Make a data set of frames, whose counts a model gets as they are: mean 0, standard deviation 1."""
    channels = train.shape[2]
    return Dataset(
        name=name,
        train_images=train,
        test_images=test,
        mean=torch.zeros(channels),
        std=torch.ones(channels),
        padding=max(1, train.shape[-1] // 8),
        sequence=True,
        stated_kind="events",
        **others,
    )
