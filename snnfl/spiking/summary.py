"""A spiking network in a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from snnfl.config import counted
from snnfl.spiking.graph import Affine, Parameters, Spike, SpikingGraph

MAX_ROWS = 10
"""Layers that are shown; of more, the first and the last."""


def summary(graph: SpikingGraph, parameters: Parameters, options: Mapping[str, object]) -> str:
    """Describe a network: its size and options, and a row for each affine and spiking layer, at most :data:`MAX_ROWS`.

    Args:
        graph: Structure.
        parameters: Weights, biases and thresholds by name; some may be missing.
        options: What else to say, in the second line.
    """
    size = sum(parameters[f"{n.name}.{kind}"].numel() for n in graph.affines for kind in ("weight", "bias"))
    like = next(iter(parameters.values()))
    about = f"{size:,} weights and biases, {str(like.dtype).removeprefix('torch.')} on {like.device}"
    rows = [_row(node, parameters) for node in graph.nodes if isinstance(node, Affine | Spike)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(
        [
            f"SpikingNetwork: {counted(len(graph.spikes), 'spiking layer')}, {about}",
            "  " + ", ".join(f"{key}={value}" for key, value in options.items()),
            *shortened([f"  {name:{widths[0]}}  {kind:{widths[1]}}  {text}" for name, kind, text in rows]),
        ]
    )


def shortened(rows: Sequence[str]) -> list[str]:
    """Return at most :data:`MAX_ROWS` lines, the first and the last of more."""
    shown = (MAX_ROWS - 1) // 2
    return [*rows] if len(rows) <= MAX_ROWS else [*rows[:shown], f"  ... {len(rows) - 2 * shown} more", *rows[-shown:]]


def _row(node: Affine | Spike, parameters: Parameters) -> tuple[str, str, str]:
    if isinstance(node, Affine):
        return node.name, node.op, " x ".join(map(str, parameters[f"{node.name}.weight"].shape))
    extra = [kind for kind in ("potential", "time_bias") if f"{node.name}.{kind}" in parameters]
    return node.name, "neurons", ", ".join([_levels(parameters[f"{node.name}.threshold"]), *extra])


def _levels(threshold: Tensor) -> str:
    if len(threshold) == 1:
        return f"threshold {threshold.item():.3g}"
    return f"{len(threshold)} thresholds from {threshold.min():.3g} to {threshold.max():.3g}"
