"""ROC plots of membership attacks, on logarithmic axes: what counts lies at small false positive rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

SMALLEST = 1e-3
"""Left end of the axes, unless there are too few non-members for it."""


def roc_figure(result: Mapping[str, Any]) -> Figure:
    """Draw the ROC of each attack on a setting, averaged over targets.

    Args:
        result: As :func:`snnfl.auditing.membership_scores.results` returns it.
    """
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    title = ", ".join(f"{axis}={label}" for axis, label in result.get("labels", {}).items())
    axes = figure.add_subplot(xlabel="false positive rate", ylabel="true positive rate", title=title)
    by_name = {entry["attack"]: entry for entry in result["entries"]}
    order = sorted(result["roc"], key=lambda name: -by_name[name]["auc"]["value"])
    for number, name in enumerate(order):
        fpr, tpr = result["roc"][name]
        style = ":" if by_name[name]["setting"] == "diagnostic" else "-"
        label = f"{name} ({by_name[name]['auc']['value']:.3f})"
        axes.plot(fpr, tpr, label=label, linestyle=style, color=colormaps["tab20"](number % 20))
    smallest = max(SMALLEST, 10 / max(1, result["targets"] * result["candidates"] // 2))
    axes.plot([smallest, 1], [smallest, 1], color="gray", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(smallest, 1))
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="x-small", title="AUC in brackets; diagnoses dotted", title_fontsize="x-small")
    return figure
