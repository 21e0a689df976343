"""The figure of a run: accuracy by round."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnfl.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = {
    "server_snn_accuracy": "server, SNN",
    "server_ann_accuracy": "server, ANN",
    "client_received_accuracy_weighted": "received, tested at the nodes",
    "client_ann_accuracy_mean": "clients, ANN (mean ± sd)",
    "client_snn_accuracy_mean": "clients, SNN (mean ± sd)",
}

STYLES = ("-", "--", (0, (6, 2)), ":", "-.")


def plot_accuracy(runs: Mapping[str, Sequence[Mapping[str, Any]]], paths: Sequence[Path]) -> None:
    """Draw the accuracies of one or several runs over the rounds.

    Args:
        runs: Rows of ``metrics.jsonl`` by the run's label; each label has a colour, each series a line style.
        paths: Files to write; the suffix decides the format.
    """
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for color, (label, rows) in enumerate(runs.items()):
        for (key, name), style in zip(SERIES.items(), STYLES, strict=True):
            points = [(row["round"], 100 * row[key], row) for row in rows if row.get(key) is not None]
            if not points:
                continue
            rounds, values = [p[0] for p in points], [p[1] for p in points]
            title = f"{label}: {name}" if len(runs) > 1 else name
            axes.plot(rounds, values, linestyle=style, color=f"C{color}", marker=".", label=title)
            if key.endswith("_mean"):
                spread = [100 * (p[2][key.replace("_mean", "_std")] or 0.0) for p in points]  # null of a sum
                low = [value - sd for value, sd in zip(values, spread, strict=True)]
                high = [value + sd for value, sd in zip(values, spread, strict=True)]
                axes.fill_between(rounds, low, high, color=f"C{color}", alpha=0.12, linewidth=0)
    axes.set_xlabel("round")
    axes.set_ylabel("test accuracy (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    axes.grid(alpha=0.3)
    if axes.lines:  # none where every round failed
        axes.legend(fontsize="small")
    for path in paths:
        save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in one step; the suffix decides the format.

    Raises:
        OSError: Naming the file, if the system doesn't let it be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=150)
    write_bytes(path, content.getvalue())
