"""Tables, figures and sentences of what PrivateSNN's networks do."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from experiments.privatesnn.setting import slug
from snnfl.files import write_bytes
from strategies.figures import save_figure

FIELDS = ("setting", "seed", "network", "quantity", "at", "value")
"""Columns of ``results.csv``: one measurement a line."""


class Row(NamedTuple):
    """One measurement.

    Attributes:
        setting: Labels of the matrix, without the seed.
        seed: Of the run.
        network: ``ANN``, ``synthetic``, ``real``, ``encrypted`` and so on.
        quantity: What was measured.
        at: Where: time steps, images; empty if there is no such thing.
        value: The number.
    """

    setting: str
    seed: int
    network: str
    quantity: str
    at: str
    value: float


def rows_of(result: Mapping[str, Any]) -> Iterator[Row]:
    """Yield every measurement of a setting."""
    labels = dict(result["labels"])
    seed = int(labels.pop("seed"))
    setting = ", ".join(labels.values()) or "network"
    yield Row(setting, seed, "ANN", "accuracy", "", result["ann"])
    yield Row(setting, seed, "ANN", "test images", "", result["test_images"])
    for network, curve in result["curves"].items():
        for length, value in curve.items():
            yield Row(setting, seed, network, "accuracy", f"T={length}", value)
    for network, ratios in result["energy"].items():
        for quantity, value in ratios.items():
            yield Row(setting, seed, network, f"energy: {quantity}", f"T={result['steps']}", value)
    for layer, value in result["moved"].items():
        yield Row(setting, seed, "encrypted", "weight moved", layer, value)
    for variant in result["variants"]:
        name = f"encrypted, m={variant['distillation']:g}"
        yield Row(setting, seed, name, "accuracy", f"images={variant['images']}", variant["accuracy"])
    for stage, times in result["stages"].items():
        yield Row(setting, seed, stage, "processor seconds", "", times["processor"])


def mean(rows: Sequence[Row], network: str, quantity: str, at: str) -> tuple[float, float | None] | None:
    """Return a mean over seeds and its deviation; ``None`` if nobody measured it."""
    values = [row.value for row in rows if (row.network, row.quantity, row.at) == (network, quantity, at)]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def write_results(folder: Path, name: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Write ``results.csv``, ``tables.md`` and the figures of a study."""
    rows = [row for result in results for row in rows_of(result)]
    write_bytes(folder / "results.csv", as_csv(rows).encode())
    write_bytes(folder / "tables.md", as_markdown(rows).encode())
    for setting in dict.fromkeys(row.setting for row in rows):
        some = [row for row in rows if row.setting == setting]
        for kind, figure in (("steps", steps_figure(some)), ("images", images_figure(some))):
            if figure is not None:
                for suffix in ("svg", "png"):
                    save_figure(figure, folder / f"{slug(setting.replace(', ', '-'))}-{kind}.{suffix}")


def as_csv(rows: Sequence[Row]) -> str:
    """Write a line per measurement."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([FIELDS, *rows])
    return stream.getvalue()


def from_csv(text: str) -> list[Row]:
    """Read what :func:`as_csv` wrote."""
    lines = list(csv.DictReader(io.StringIO(text)))
    return [Row(**{**line, "seed": int(line["seed"]), "value": float(line["value"])}) for line in lines]  # type: ignore[arg-type]


def settings_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group measurements by setting."""
    return {name: [row for row in rows if row.setting == name] for name in dict.fromkeys(row.setting for row in rows)}


NETWORKS = ("synthetic", "real", "synthetic, MMSE", "real, MMSE", "encrypted")


def accuracy_rows(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Lay out accuracy over time steps, in per cent: head and lines."""
    found = dict.fromkeys(row.at for row in rows if row.quantity == "accuracy" and row.at.startswith("T="))
    lengths = sorted(found, key=lambda at: int(at[2:]))
    lines = [["ANN", *[_percent(mean(rows, "ANN", "accuracy", ""))] * len(lengths)]]
    for network in NETWORKS:
        cells = [_percent(mean(rows, network, "accuracy", at)) for at in lengths]
        if any(cells):
            lines.append([network, *cells])
    return ["network", *lengths], lines


def energy_rows(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Lay out how many times its energy the ANN takes: head and lines."""
    names = {
        "spikes_per_neuron": "spikes per neuron",
        "paper": "paper's model, spikes of all steps",
        "paper_per_step": "paper's model, spikes of one step",
        "compute": "ours, arithmetic",
        "total": "ours, with memory",
    }
    lines = []
    for network in ("synthetic", "encrypted"):
        at = next((row.at for row in rows if row.network == network and row.quantity == "energy: paper"), "")
        cells = [mean(rows, network, f"energy: {key}", at) for key in names]
        lines.append([network, *(f"{cell[0]:.3g}" if cell else "" for cell in cells)])
    return ["network", *names.values()], lines


def variant_rows(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Lay out accuracy over the number of synthetic images, in per cent; no lines without variants."""
    points = dict.fromkeys(row.at for row in rows if row.at.startswith("images="))
    at = sorted(points, key=lambda text: int(text[7:]))
    networks = sorted({row.network for row in rows if row.at.startswith("images=")})
    lines = [[name, *(_percent(mean(rows, name, "accuracy", each)) for each in at)] for name in networks]
    return ["network", *at], lines


PARTS = {
    "Accuracy in per cent": accuracy_rows,
    "Accuracy in per cent by synthetic images of encryption": variant_rows,
    "Energy of the ANN over that of the network": energy_rows,
}


def as_markdown(rows: Sequence[Row]) -> str:
    """Lay out the tables of all settings, mean ± deviation over seeds."""
    parts = []
    for setting, some in settings_of(rows).items():
        seeds = sorted({row.seed for row in some})
        for title, layout in PARTS.items():
            head, lines = layout(some)
            if lines:
                table = "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))
                parts.append(f"**{setting}: {title}** (seeds {', '.join(map(str, seeds))})\n\n{table}\n")
    return "\n".join(parts)


def rich_tables(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Lay the same tables out for the terminal."""
    rows, tables = [row for result in results for row in rows_of(result)], []
    for setting, some in settings_of(rows).items():
        for title, layout in PARTS.items():
            head, lines = layout(some)
            if lines:
                table = Table(*head, title=f"{setting}: {title}")
                for line in lines:
                    table.add_row(*line)
                tables.append(table)
    return tables


def sentences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what was found of each setting."""
    rows = [row for result in results for row in rows_of(result)]
    return [sentence(name, some) for name, some in settings_of(rows).items()]


def sentence(setting: str, rows: Sequence[Row]) -> str:
    """Say what was found of one setting."""
    at = next(row.at for row in rows if row.quantity == "energy: paper")
    ann, synthetic, real, encrypted = (
        mean(rows, name, "accuracy", "" if name == "ANN" else at) for name in ("ANN", "synthetic", "real", "encrypted")
    )
    if ann is None or synthetic is None or encrypted is None:
        return f"{setting}: not all is measured"
    beside = "" if real is None else f", {100 * (synthetic[0] - real[0]):+.2f} points beside training images"
    moved = statistics.fmean(row.value for row in rows if row.quantity == "weight moved")
    gap, images = 100 * (encrypted[0] - ann[0]), sum(row.value for row in rows if row.quantity == "test images")
    half = 196 * math.sqrt(ann[0] * (1 - ann[0]) / images) if images else math.nan
    return (
        f"{setting}, {at}: the ANN has {100 * ann[0]:.1f} %; converted without data {100 * synthetic[0]:.1f} %"
        f"{beside}; encrypted {100 * encrypted[0]:.1f} %, {gap:+.2f} points beside the ANN, with weights moved by "
        f"{100 * moved:.1f} % on average ({images:,.0f} test images: each accuracy is known to {half:.1f} points)"
    )


def steps_figure(rows: Sequence[Row]) -> Figure | None:
    """Draw accuracy over time steps (Fig. 5a)."""
    head, lines = accuracy_rows(rows)
    if len(head) < 3:
        return None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel="time steps T", ylabel="accuracy, %", title=rows[0].setting)
    lengths = [int(at[2:]) for at in head[1:]]
    for name, *_ in lines:
        values = [mean(rows, name, "accuracy", "" if name == "ANN" else at) for at in head[1:]]
        points = [100 * value[0] for value in values if value is not None]
        style = {"ANN": "--", "encrypted": "-"}.get(name, ":" if name.startswith("real") else "-.")
        axes.plot(lengths, points, style, label=name, marker=None if name == "ANN" else ".")
    _log_axis(axes, lengths)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def images_figure(rows: Sequence[Row]) -> Figure | None:
    """Draw accuracy over the number of synthetic images, with and without distillation (Fig. 5b)."""
    head, lines = variant_rows(rows)
    if len(head) < 3:
        return None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel="synthetic images", ylabel="accuracy, %", title=rows[0].setting)
    for name, *_ in lines:
        values = [mean(rows, name, "accuracy", at) for at in head[1:]]
        axes.plot(
            [int(at[7:]) for at in head[1:]], [100 * value[0] for value in values if value], marker=".", label=name
        )
    at = next(row.at for row in rows if row.quantity == "energy: paper")
    for name, style in (("ANN", "--"), ("synthetic", ":")):
        level = mean(rows, name, "accuracy", "" if name == "ANN" else at)
        if level is not None:
            axes.axhline(100 * level[0], linestyle=style, color="black", linewidth=0.8, label=name)
    _log_axis(axes, [int(at[7:]) for at in head[1:]])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _log_axis(axes: Axes, ticks: Sequence[int]) -> None:
    """Let a horizontal axis be logarithmic, with ticks where something was measured."""
    axes.set_xscale("log")
    axes.set_xticks(ticks, labels=list(map(str, ticks)))
    axes.minorticks_off()


def _percent(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return ""
    mean, deviation = value
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
