"""Which private biases an update tells as they are."""

from __future__ import annotations

from snnfl.spiking import SpikingGraph


def exposed_biases(graph: SpikingGraph, calibration: str) -> tuple[str, ...]:
    """Name the layers whose private bias the server can read off an update, because calibration doesn't shift it.

    Of the other layers single elements may be met, where the mean conversion error is zero: docs/audit.md.

    Args:
        graph: Of the network.
        calibration: ``conversion.calibration``.
    """
    sites = [graph.calibration_site(name) for name in (*(node.inputs[0] for node in graph.spikes), graph.output)]
    shifted = {site.name for site in sites if site is not None} if calibration in ("bias", "bias_potential") else set()
    return tuple(node.name for node in graph.affines if node.has_bias and node.name not in shifted)
