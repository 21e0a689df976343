"""The figures of an audit's report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from snnfl.auditing.bias_errors import BiasError
from snnfl.auditing.measures import MEASURES, Metric
from snnfl.auditing.scorecard import Entry
from snnfl.auditing.setting import PLAIN_TWIN
from snnfl.detection import Verdict

SIZE = (7.5, 3.6)

LEGEND = 2
"""Names of attacks side by side: more would run into each other, or out of the figure."""

TICKS = 20
"""Clients named on an axis at most."""


def convergence(entries: Sequence[Entry]) -> Figure:
    """Draw by iteration each attack's objective over its first value, and its PSNR (or the like) beside the floor.

    Both are means over victims; of several rounds each has a line. Lines of plain twins are dashed.
    """
    drawn = [entry for entry in entries if len(entry["curve"]) > 1]
    figure = Figure(figsize=(SIZE[0], SIZE[1] + 0.2 * math.ceil((len(drawn) + 2) / LEGEND)), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set(xlabel="iteration", ylabel="objective / its first value", yscale="log")
    first = _first(entries)
    right.set(xlabel="iteration", ylabel=first.title)
    several = len({entry["round"] for entry in drawn}) > 1
    for place, entry in enumerate(drawn):
        style = {"color": f"C{place % 10}", "linestyle": "--" if entry["updates"] == PLAIN_TWIN else "-"}
        known = [point for point in entry["curve"] if point["objective"] is not None]
        left.plot([point["iteration"] for point in known], [point["objective"] for point in known], **style)
        scored = [point for point in entry["curve"] if point[first.name] is not None]
        values = [point[first.name]["value"] for point in scored]
        label = entry["attack"] + (f" ({PLAIN_TWIN})" if entry["updates"] == PLAIN_TWIN else "")
        label += f", round {entry['round']}" if several else ""
        right.plot([point["iteration"] for point in scored], values, label=label, **style)
    floors = [entry["floor"][first.name] for entry in entries if entry["floor"][first.name] is not None]
    if floors:
        best = max(floors) if first.higher else min(floors)
        right.axhline(best, color="grey", linestyle=":", label="best guess")
    if floors and first.success is not None:
        right.axhline(first.success, color="grey", linestyle="-.", label=f"success: {first.success:g}")
    if right.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", fontsize="small", ncols=LEGEND)
    return figure


def side_by_side(rows: Sequence[tuple[str, Sequence[Tensor]]]) -> Figure:
    """Draw rows of images ``[C, H, W]`` of pixels in [0, 1], each below its title."""
    columns = max(len(images) for _, images in rows)
    figure = Figure(figsize=(columns * 1.3, len(rows) * 1.55))
    grid = figure.subplots(
        len(rows), columns, squeeze=False,
        gridspec_kw={"left": 0.01, "right": 0.99, "bottom": 0.01, "top": 0.95, "wspace": 0.06, "hspace": 0.2},
    )  # fmt: skip
    for (title, images), line in zip(rows, grid, strict=True):
        line[0].set_title(title, loc="left", fontsize="medium")
        for axes, image in zip(line, images, strict=False):
            axes.imshow(image.clamp(0, 1).movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        for axes in line:
            axes.set_axis_off()
    return figure


def bias_curves(errors: Sequence[BiasError]) -> Figure:
    """Draw the L2 distance of each guess by round, averaged over clients (SNFL, Figure 3A)."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel="round", ylabel="L2 distance to the trained biases")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for source in dict.fromkeys(error.source for error in errors):
        rounds = sorted({error.server_round for error in errors if error.source == source})
        found = [[e.distance for e in errors if e.source == source and e.server_round == n] for n in rounds]
        axes.plot(rounds, [sum(values) / len(values) for values in found], marker="o", label=source)
    axes.legend(fontsize="small")
    return figure


def noise_curve(points: Sequence[tuple[float, Entry]]) -> Figure:
    """Draw PSNR (or the like) over the noise, with its interval and the floor."""
    first = _first([entry for _, entry in points])
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel="noise z (deviation / clipping norm)", ylabel=first.title, xscale="log")
    scored = [(z, entry) for z, entry in points if entry["value"] is not None]
    for server_round in sorted({entry["round"] for _, entry in scored}):
        some = [(z, entry) for z, entry in scored if entry["round"] == server_round]
        middle = [entry["value"] for _, entry in some]
        low, high = (
            [abs(entry["value"] - (entry["interval"] or (entry["value"],) * 2)[end]) for _, entry in some]
            for end in (0, 1)
        )
        axes.errorbar([z for z, _ in some], middle, yerr=[low, high], marker="o", label=f"round {server_round}")
        axes.axhline(some[0][1]["floor"][first.name], color="grey", linestyle=":")
    if scored:
        axes.legend(fontsize="small")
    return figure


def _first(entries: Sequence[Entry]) -> Metric:
    """Return the metric that a run's curves show."""
    return MEASURES[entries[0]["kind"] if entries else "images"].metrics[0]


def threshold_scatter(partitions: Sequence[int], verdict: Verdict, guilty: set[int]) -> Figure:
    """Draw the thresholds of the last two layers, and each client's distance (SNFL, Figure 3B and C)."""
    figure = Figure(figsize=SIZE, layout="constrained")
    left, right = figure.subplots(1, 2)
    points, scores = verdict.points, verdict.scores
    colours = ["C3" if partition in guilty else "C0" for partition in partitions]
    if points is not None:
        left.scatter(points[:, 0].tolist(), points[:, 1].tolist(), c=colours)
    left.set(xlabel="threshold, last layer but one", ylabel="threshold, last layer")
    right.bar(range(len(scores)), scores.tolist(), color=colours)
    right.set(xlabel="client", ylabel="distance to the cluster's centre")
    shown = range(0, len(scores), math.ceil(len(scores) / TICKS))
    names = [str(partitions[place]) for place in shown]
    right.set_xticks(shown, names, fontsize="small", rotation=90 if len("".join(names)) > TICKS else 0)
    return figure
