"""What a spiking network does and what that costs."""

from snnfl.metrics.activity import Activity, Structure, measure_activity, warning_of
from snnfl.metrics.energy import Energy, LayerCount, SpikeCount, count_spikes

__all__ = [
    "Activity",
    "Energy",
    "LayerCount",
    "SpikeCount",
    "Structure",
    "count_spikes",
    "measure_activity",
    "warning_of",
]
