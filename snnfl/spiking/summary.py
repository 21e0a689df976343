"""A spiking network in a few lines."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

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
    if len(rows) > MAX_ROWS:
        shown = (MAX_ROWS - 1) // 2
        rows[shown:-shown] = [(f"... {len(rows) - 2 * shown} more", "", "")]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(
        [
            f"SpikingNetwork: {len(graph.spikes)} spiking layers, {about}",
            "  " + ", ".join(f"{key}={value}" for key, value in options.items()),
            *(f"  {name:{widths[0]}}  {kind:{widths[1]}}  {text}".rstrip() for name, kind, text in rows),
        ]
    )


def _row(node: Affine | Spike, parameters: Parameters) -> tuple[str, str, str]:
    if isinstance(node, Affine):
        return node.name, node.op, " x ".join(map(str, parameters[f"{node.name}.weight"].shape))
    extra = [kind for kind in ("potential", "time_bias") if f"{node.name}.{kind}" in parameters]
    return node.name, "neurons", ", ".join([_levels(parameters[f"{node.name}.threshold"]), *extra])


def _levels(threshold: Tensor) -> str:
    if len(threshold) == 1:
        return f"threshold {threshold.item():.3g}"
    return f"{len(threshold)} thresholds from {threshold.min():.3g} to {threshold.max():.3g}"
