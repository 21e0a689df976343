"""Samples of every kind as small pictures for a page."""

from __future__ import annotations

import base64
import io

import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor

from experiments.html import picture
from snnfl.data import DataKind


def shown(kind: DataKind, sample: Tensor) -> Markup:
    """Return a sample of pixels in [0, 1] as a picture.

    Events are summed over time, those of the first channel in red and of the others in blue; sound is its bands over
    time, low ones below; a series is a line per feature; a row of a table a bar per feature.
    """
    if kind == "images":
        return picture(sample)
    if kind == "events":
        return picture(summed(sample))
    if kind == "audio":
        return picture(sample.T.flip(0)[None])
    return _plotted(sample, lines=kind == "series")


def summed(events: Tensor) -> Tensor:
    """Return events ``[T, C, H, W]`` or ``[T, W]`` summed over time, as a picture ``[3, H, W]`` on white."""
    total = events.sum(0)
    channels = total if total.dim() == 3 else total[None, None]
    first, others = channels[0], channels[1:].sum(0)
    scale = torch.maximum(first, others).max().clamp_min(1e-6)
    red, blue = first / scale, others / scale
    return torch.stack([1 - blue, (1 - red - blue).clamp_min(0), 1 - red])


def _plotted(sample: Tensor, *, lines: bool) -> Markup:
    figure = Figure(figsize=(1.6, 1.0), layout="constrained")
    axes = figure.add_subplot(ylim=(-0.02, 1.02))
    if lines:
        axes.plot(sample.numpy(), linewidth=0.7)
    else:
        axes.bar(range(sample.numel()), sample.flatten().numpy())
    axes.set_xticks([])
    axes.set_yticks([])
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    source = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    return Markup('<img src="{}" width="160" height="100" alt="">').format(source)
