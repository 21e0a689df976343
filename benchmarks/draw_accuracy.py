"""Draws accuracy over time steps from what ``accuracy.py --json FILE`` has written. This is no benchmark itself.

``python benchmarks/draw_accuracy.py FILE docs/images/few-steps.png``
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

Points = dict[str, list[tuple[int, float, float, float]]]


def points(file: Path) -> Points:
    """Read, by method, steps (those before a simulation, too), points below the ANN and the ends of their interval."""
    found: Points = defaultdict(list)
    for result in json.loads(file.read_text(encoding="utf-8"))["accuracy"]["results"]:
        name = re.fullmatch(r"(.*), T=(\d+)(?: \(\+(\d+)\))?: ANN minus SNN", result["name"])
        interval = re.search(r"interval (-?[\d.]+) to (-?[\d.]+)", result["note"])
        if name and interval:
            steps = int(name[2]) + int(name[3] or 0)
            found[name[1]].append((steps, result["value"], float(interval[1]), float(interval[2])))
    return found


def draw(found: Points, path: Path) -> None:
    """Draw a line with intervals for each method that has several lengths."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, rows in found.items():
        if rows:
            steps, values, low, high = zip(*sorted(rows), strict=True)
            axes.errorbar(
                steps,
                values,
                yerr=[
                    [v - a for v, a in zip(values, low, strict=True)],
                    [b - v for v, b in zip(values, high, strict=True)],
                ],
                marker="o",
                markersize=4,
                capsize=2,
                label=name,
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks([4, 8, 16, 32], ["4", "8", "16", "32"])
    axes.set_yscale("symlog", linthresh=1)
    axes.set_yticks([0, 1, 2, 5, 10, 20, 50, 80], ["0", "1", "2", "5", "10", "20", "50", "80"])
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("time steps, with those before the simulation")
    axes.set_ylabel("points below the ANN")
    axes.set_title("ResNet-20 on CIFAR-10: what conversion loses, 95 % intervals", fontsize=10)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(points(Path(sys.argv[1])), Path(sys.argv[2]))
