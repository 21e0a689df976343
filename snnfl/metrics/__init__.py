"""What a spiking network does and what that costs."""

from snnfl.metrics.energy import Energy, LayerCount, SpikeCount, count_spikes

__all__ = ["Energy", "LayerCount", "SpikeCount", "count_spikes"]
