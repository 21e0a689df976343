"""Which private biases an update tells as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from snnfl.conversion.folding import fold
from snnfl.spiking import SpikingGraph
from snnfl.spiking.values import channel_counts, hollow


def exposed_biases(
    graph: SpikingGraph, calibration: str, state: Mapping[str, Tensor], input_shape: Sequence[int]
) -> tuple[str, ...]:
    """Name the layers whose private bias the server can read off an update, because calibration doesn't shift it.

    Of the other layers single elements may be met, where the mean conversion error is zero: docs/audit-measured.md.

    Args:
        graph: Of the network.
        calibration: ``conversion.calibration``.
        state: An ANN state, for the shapes.
        input_shape: Shape of an image.
    """
    shifted = set[str]()
    if calibration in ("bias", "bias_potential"):
        parameters = fold(graph, state)
        image = hollow((1, *input_shape), next(iter(parameters.values())))
        channels = channel_counts(graph, parameters, image)
        ends = (*(node.inputs[0] for node in graph.spikes), graph.output)
        shifted = {site.name for end in ends if (site := graph.calibration_site(end, channels)) is not None}
    return tuple(node.name for node in graph.affines if node.has_bias and node.name not in shifted)
