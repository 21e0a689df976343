"""Draw who holds which labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from snnfl.config import ConfigError

LEGEND_CLASSES = 20
"""With more classes colours can no longer be told apart, and a heat map takes the place of bars."""


def plot_partition(counts: Tensor, class_names: Sequence[str], title: str, path: Path) -> None:
    """Draw one bar a client, divided by label; with more than 20 classes a heat map of clients and labels.

    Args:
        counts: Examples per client and label, shape ``[clients, classes]``.
        class_names: One per label.
        title: Goes above the figure.
        path: File to write; its suffix decides the format, for example ``.svg`` or ``.png``. Its folder is made.

    Raises:
        ConfigError: If the suffix names no format that matplotlib writes.
    """
    clients, classes = counts.shape
    figure = Figure(figsize=(8.0, float(np.clip(1.5 + 0.2 * clients, 3.0, 14.0))), layout="constrained")
    if path.suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise ConfigError(f"{path}: unknown picture format {path.suffix!r}; use .svg or .png")
    axes = figure.add_subplot()
    if classes > LEGEND_CLASSES:
        _heat_map(figure, axes, counts)
    else:
        _bars(axes, counts, class_names)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", title="label")
    axes.set(title=title, ylabel="client")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=60, integer=True, min_n_ticks=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _bars(axes: Axes, counts: Tensor, class_names: Sequence[str]) -> None:
    clients, classes = counts.shape
    colours = mpl.colormaps["tab10" if classes <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    ends = counts.cumsum(1).numpy()
    for label, name in enumerate(class_names):
        widths = counts[:, label].numpy()
        axes.barh(range(clients), widths, left=ends[:, label] - widths, color=colours[label], label=name)
    axes.set(xlabel="training samples", ylim=(clients - 0.5, -0.5))


def _heat_map(figure: Figure, axes: Axes, counts: Tensor) -> None:
    image = axes.imshow(counts.numpy(), aspect="auto", interpolation="nearest", cmap="viridis")
    figure.colorbar(image, ax=axes, label="training samples")
    axes.set(xlabel="label")
