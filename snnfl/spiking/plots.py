"""Figures of a recording: spikes as a raster, membrane potentials as traces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from snnfl.config import counted


def raster_plot(spikes: Mapping[str, Tensor], neurons: int) -> Figure:
    """Draw a panel for each layer, a row for a neuron, a mark for a spike.

    Args:
        spikes: ``[T, neurons]`` by layer.
        neurons: Rows of a panel at most; evenly spaced among the layer's.
    """
    figure, panels = _panels(len(spikes), height=1.5)
    for axes, (layer, fired) in zip(panels, spikes.items(), strict=True):
        total = fired.shape[1]
        shown = torch.linspace(0, total - 1, min(neurons, total)).round().long()
        times, rows = fired[:, shown].nonzero(as_tuple=True)
        axes.scatter((times + 1).tolist(), shown[rows].tolist(), s=6, marker="|", linewidths=0.8, color="C0")
        axes.set_ylim(-0.02 * total - 0.5, 1.02 * total - 0.5)
        axes.set_ylabel("neuron")
        part = "" if len(shown) == total else f", {len(shown)} of them drawn"
        axes.set_title(f"{layer}: {total:,} neurons{part}", fontsize="small", loc="left")
    _in_time(panels, len(next(iter(spikes.values()))))
    return figure


def membrane_plot(layer: str, traces: Mapping[int, tuple[Tensor, Tensor, float]]) -> Figure:
    """Draw a panel for each neuron: its potential after each step, its threshold, and where it fires.

    Args:
        layer: For the titles.
        traces: Potential ``[T]``, spikes ``[T]`` and threshold by neuron.
    """
    figure, panels = _panels(len(traces), height=1.7)
    for axes, (neuron, (potential, fired, threshold)) in zip(panels, traces.items(), strict=True):
        steps = range(1, len(potential) + 1)
        axes.plot(steps, potential.tolist(), drawstyle="steps-mid", color="C0", label="potential after the step")
        axes.axhline(threshold, color="0.5", linestyle="--", linewidth=0.8, label="threshold")
        times = (fired.nonzero().flatten() + 1).tolist()
        axes.scatter(times, [threshold] * len(times), marker="|", s=90, color="C3", label="spike", zorder=3)
        axes.set_ylabel("potential")
        axes.set_title(f"{layer}, neuron {neuron}: {counted(len(times), 'spike')}", fontsize="small", loc="left")
    panels[0].legend(fontsize="x-small", ncols=3, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    _in_time(panels, len(next(iter(traces.values()))[0]))
    return figure


def _panels(count: int, height: float) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(7, height * count + 0.6), layout="constrained")
    return figure, list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])


def _in_time(panels: list[Any], steps: int) -> None:
    panels[-1].set_xlabel("time step")
    panels[-1].set_xlim(0.5, steps + 0.5)
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
