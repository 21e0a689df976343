"""What is measured of a guess, by the kind of data, and the guesses that need no update: the floors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from snnfl.data import DataKind, Dataset
from snnfl.metrics import events, images, series

IDENTIFIED = "identified"
"""Name of the metric that all kinds have: whether a guess is nearest to its own among many samples."""

BY_RUN = "identified_by_run"
"""Name of the identification by the attacked network's own features, which matching makes too high."""


EXACT_PSNR = 60.0
"""In dB: errors of a thousandth, a quarter of the step between two of 256 levels."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number per sample.

    Attributes:
        name: In files.
        title: In tables, with its unit.
        what: What of a sample it compares, in a word, for whoever doesn't know the title.
        form: How it is written.
        higher: Whether more is more of a leak; else less is.
        judged: Whether it is compared with the floors.
        success: From where on a reconstruction counts as a success, if there is such a value.
        exact: From where on it is the sample itself, as far as samples have digits, so that even one is no chance.
    """

    name: str
    title: str
    what: str = ""
    form: str = ".2f"
    higher: bool = True
    judged: bool = False
    success: float | None = None
    exact: float | None = None

    @property
    def words(self) -> str:
        """What it compares, and its title: ``pixels (PSNR)``."""
        return f"{self.what} ({self.title.removesuffix(' in dB')})" if self.what else self.title

    def is_exact(self, value: float) -> bool:
        """Return whether a value is of the sample itself."""
        return self.exact is not None and self.gain(value, self.exact) >= 0

    def gain(self, value: float, floor: float) -> float:
        """Return by how much a value is better than a floor."""
        return value - floor if self.higher else floor - value


@dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """How guesses of one kind of data are scored.

    Attributes:
        metrics: The first is the one that tables and curves show.
        values: ``(data set, found, true) -> a number per sample, by metric``, of pixels in [0, 1].
        floors: ``(true, public) -> guesses without any update, by name``, in pixels and in the shape of ``true``.
        blank: The pixel that stands for a sample of which nothing was found.
    """

    metrics: tuple[Metric, ...]
    values: Callable[[Dataset, Tensor, Tensor], Mapping[str, Tensor]]
    floors: Callable[[Tensor, Tensor], Mapping[str, Tensor]]
    blank: float = 0.5

    @property
    def judged(self) -> tuple[Metric, ...]:
        """What is compared with the floors, without the identification."""
        return tuple(metric for metric in self.metrics if metric.judged)


def _images(dataset: Dataset, found: Tensor, true: Tensor) -> Mapping[str, Tensor]:
    values = {
        "psnr": images.psnr(found, true),
        "ssim": images.ssim(found, true),
        "registered_psnr": images.registered_psnr(found, true),
        "mse": images.mse(found, true),
    }
    perceptual = images.lpips(found, true)
    return values if isinstance(perceptual, str) else {**values, "lpips": perceptual}


def _events(dataset: Dataset, found: Tensor, true: Tensor) -> Mapping[str, Tensor]:
    pairs = (found, true)
    if true.dim() == 3:  # a line of sensors
        pairs = (found[:, :, None, None], true[:, :, None, None])
    return {
        "f1": events.event_f1(*pairs),
        "surface_ssim": events.time_surface_ssim(*pairs),
        "exact_frames": events.exact_frames(*pairs),
        "van_rossum": events.van_rossum(*pairs),
        "victor_purpura": events.victor_purpura(*pairs),
    }


def _audio(dataset: Dataset, found: Tensor, true: Tensor) -> Mapping[str, Tensor]:
    return {
        "log_spectral": series.log_spectral_distance(dataset.stored(found), dataset.stored(true)),
        "correlation": series.correlation(found, true),
    }


def _series(dataset: Dataset, found: Tensor, true: Tensor) -> Mapping[str, Tensor]:
    pair = [dataset.normalise(dataset.stored(values)) for values in (found, true)]
    return {"correlation": series.correlation(*pair), "warping": series.warping_distance(*pair)}


def _table(dataset: Dataset, found: Tensor, true: Tensor) -> Mapping[str, Tensor]:
    pair = [dataset.normalise(dataset.stored(values)) for values in (found, true)]
    return {"relative_error": series.relative_error(*pair)}


def _event_floors(true: Tensor, public: Tensor) -> Mapping[str, Tensor]:
    """Guess nothing; and the mean public recording: as many events as one has on average, where they are likeliest."""
    fired = (public > 0).float()
    likely, number = fired.mean(0), round(float(fired.flatten(1).sum(1).mean()))
    chosen = torch.zeros(likely.numel())
    chosen[likely.flatten().topk(number).indices] = float(public[public > 0].min()) if number else 0.0
    return {"empty": torch.zeros_like(true), "mean_recording": chosen.view_as(likely).expand_as(true)}


def _series_floors(true: Tensor, public: Tensor) -> Mapping[str, Tensor]:
    """Guess the mean public series, and each target's own mean per feature, which is already more than nothing."""
    own = true.mean(1, keepdim=True)
    return {"mean_series": public.mean(0, keepdim=True).expand_as(true), "mean_level": own.expand_as(true)}


def _table_floors(true: Tensor, public: Tensor) -> Mapping[str, Tensor]:
    """Guess the mean and the median of public rows."""
    middle = public.median(0, keepdim=True).values
    return {"mean_row": public.mean(0, keepdim=True).expand_as(true), "median_row": middle.expand_as(true)}


MEASURES: Mapping[DataKind, Measures] = {
    "images": Measures(
        metrics=(
            Metric(
                name="psnr", title="PSNR in dB", what="pixels", form=".1f", judged=True, success=20.0, exact=EXACT_PSNR
            ),
            Metric(name="ssim", title="SSIM", what="structure", judged=True, success=0.5),
            Metric(name="registered_psnr", title="PSNR of the best shift in dB", form=".1f"),
            Metric(name="mse", title="MSE", form=".2g", higher=False),
        ),
        values=_images,
        floors=images.floors,
    ),
    "events": Measures(
        metrics=(
            Metric(name="f1", title="event F1", what="events", judged=True, success=0.9, exact=1.0),
            Metric(name="surface_ssim", title="time-surface SSIM", what="times of events", judged=True),
            Metric(name="exact_frames", title="exact frames", success=1.0),
            Metric(name="van_rossum", title="van Rossum distance", higher=False),
            Metric(name="victor_purpura", title="Victor-Purpura distance", form=".1f", higher=False),
        ),
        values=_events,
        floors=_event_floors,
        blank=0.0,
    ),
    "audio": Measures(
        metrics=(
            Metric(
                name="log_spectral",
                title="log-spectral distance in dB",
                what="spectrum",
                form=".1f",
                higher=False,
                judged=True,
            ),
            Metric(name="recognised", title="recognised", what="class", judged=True),
            Metric(name="correlation", title="correlation"),
        ),
        values=_audio,
        floors=_series_floors,
    ),
    "series": Measures(
        metrics=(
            Metric(name="correlation", title="correlation", what="course", judged=True, success=0.9),
            Metric(name="warping", title="warping distance", what="course, if stretched", higher=False, judged=True),
        ),
        values=_series,
        floors=_series_floors,
    ),
    "table": Measures(
        metrics=(Metric(name="relative_error", title="relative error", what="values", higher=False, judged=True),),
        values=_table,
        floors=_table_floors,
    ),
}

COMMON = (
    Metric(name="label_accuracy", title="labels", form=".0%"),
    Metric(name=IDENTIFIED, title="IIP", what="identifiable", form=".0%", judged=True),
    Metric(name=BY_RUN, title="IIP by the run's own network", form=".0%"),
)
"""What is measured of every kind of data."""
