"""From a trained ANN to a calibrated spiking network, layer by layer (SNFL Algorithm 1, ANN-TO-SNN)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snnfl.config import ConversionConfig
from snnfl.conversion.folding import fold
from snnfl.conversion.thresholds import mmse_threshold
from snnfl.spiking.graph import Spike, SpikingGraph
from snnfl.spiking.network import (
    CHUNK_BYTES,
    SpikingNetwork,
    analog_value,
    constant_values,
    in_fast_layout,
    linear_value,
    over_time,
)
from snnfl.spiking.neuron import broadcast, integrate_and_fire
from snnfl.spiking.trace import trace

STORED_CURRENT_BYTES = 512 * 2**20
"""Largest input current of one layer that is kept between the two scans; a larger one is computed twice."""


def convert(model: nn.Module, images: Tensor, config: ConversionConfig) -> SpikingNetwork:
    """Convert a trained network to a calibrated spiking one.

    Layers are converted in order. Of each, the ANN's activations on ``images`` give the threshold, the spikes that
    the layers before it emit in ``config.steps`` steps give its input current, and the difference between activation
    and spike rate gives the shift of its bias, ``b <- b + mean(a) - mean(s)`` (equation 6). A layer's spike train is
    kept for the next, so the cost is linear in depth; the current is linear in the bias, so one pass of convolutions
    serves the uncalibrated and the calibrated run.

    Args:
        model: The ANN, taken in evaluation mode; neither its parameters nor its mode are changed.
        images: Calibration images, shape ``[N, ...]``, normalised as in training.
        config: Steps, thresholds and calibration.

    Returns:
        The spiking network, with parameters of its own.

    Raises:
        ConversionError: If the model doesn't convert.
        ValueError: If the images are empty or not finite.
    """
    return convert_state(trace(model), model.state_dict(), images, config)


@torch.no_grad()
def convert_state(
    graph: SpikingGraph, state: Mapping[str, Tensor], images: Tensor, config: ConversionConfig
) -> SpikingNetwork:
    """Convert as :func:`convert`, from a graph that was traced before and an ANN's arrays by name."""
    if len(images) == 0:
        raise ValueError("no calibration images: give at least one")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("calibration images hold NaN or infinity: check the data and its normalisation")
    return _Conversion(graph, fold(graph, state), in_fast_layout(images), config).run()


@dataclass
class _Conversion:
    """One walk over the graph, with the ANN's activations and the spike trains that later layers still read."""

    graph: SpikingGraph
    parameters: dict[str, Tensor]
    images: Tensor
    config: ConversionConfig
    constants: dict[str, Tensor] = field(default_factory=dict)
    trains: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> SpikingNetwork:
        uncalibrated = dict(self.parameters)  # what the ANN's activations are computed from
        analog = {self.graph.input: self.images}
        self.constants = constant_values(self.graph, self.parameters, self.images)
        for node in self.graph.nodes:
            analog[node.name] = analog_value(node, analog, uncalibrated)
            if isinstance(node, Spike):
                self._convert_layer(node, analog[node.name])
            for name in self.graph.freed_after[node.name]:
                del analog[name]
        if self.config.calibration == "bias":
            self._calibrate_readout(analog[self.graph.output])
        return self._network()

    def _network(self) -> SpikingNetwork:
        return SpikingNetwork(self.graph, self.parameters, self.config.initial_potential)

    def _convert_layer(self, node: Spike, activation: Tensor) -> None:
        """Find a layer's threshold, calibrate the bias in front of it and record its spike train."""
        source = node.inputs[0]
        rows = activation.flatten()[None] if self.config.thresholds == "layer_mmse" else _by_channel(activation)
        threshold = mmse_threshold(rows, self.config.steps, candidates=self.config.candidates)
        self.parameters[f"{node.name}.threshold"] = threshold
        site = self.graph.calibration_site(source) if self.config.calibration == "bias" else None
        currents = None if site is None else self._calibrate(node, site.name, activation)
        potential = self._network().rest(node.name, activation)
        train = torch.empty_like(activation.expand(self.config.steps, *activation.shape), dtype=torch.uint8)
        done = 0
        for current in currents or self._currents(source, activation):
            train[done : done + len(current)] = integrate_and_fire(current, threshold, potential, binary=True)
            done += len(current)
        self._keep(node, train)

    def _calibrate(self, node: Spike, site: str, activation: Tensor) -> list[Tensor] | None:
        """Shift a bias by the layer's mean conversion error; return the shifted currents where they are stored."""
        source, threshold = node.inputs[0], self.parameters[f"{node.name}.threshold"]
        fits = activation.nbytes * self.config.steps <= STORED_CURRENT_BYTES
        stored = list(self._currents(source, activation)) if fits and source not in self.constants else None
        potential = self._network().rest(node.name, activation)
        charge = _channel_mean(potential, 1)
        for current in stored or self._currents(source, activation):
            charge += _channel_mean(current, 2) * len(current)
            integrate_and_fire(current, threshold, potential, binary=True)
        # Charge is conserved: what flowed in has left as spikes or is still on the membrane.
        rate = (charge - _channel_mean(potential, 1)) / self.config.steps
        shift = _channel_mean(activation, 1) - rate
        self._shift_bias(site, shift)
        for current in stored or ():
            current += broadcast(shift, activation.shape)
        return stored

    def _currents(self, source: str, like: Tensor) -> Iterator[Tensor]:
        """Yield the input current of a layer, ``[length, N, ...]``, in chunks of time."""
        length = max(1, CHUNK_BYTES // like.nbytes)
        for start in range(0, self.config.steps, length):
            stop = min(start + length, self.config.steps)
            current = self._value(source, start, stop, dict(self.constants))
            yield over_time(current, source in self.constants, stop - start)

    def _value(self, name: str, start: int, stop: int, values: dict[str, Tensor]) -> Tensor:
        """Compute a value from the spike trains behind it, for the steps ``start..stop``."""
        if name not in values:
            node = self.graph.by_name[name]
            if isinstance(node, Spike):
                values[name] = self._scaled(name, self.trains[name][start:stop]).flatten(0, 1)
            else:
                for source in node.inputs:
                    self._value(source, start, stop, values)
                values[name] = linear_value(node, values, self.constants, self.parameters, stop - start)
        return values[name]

    def _scaled(self, name: str, train: Tensor) -> Tensor:
        """Give binary spikes their amplitude; a copy and a product in place are 4 times faster than uint8 * float."""
        level = broadcast(self.parameters[f"{name}.threshold"], train.shape[1:])
        return torch.empty_like(train, dtype=level.dtype).copy_(train).mul_(level)

    def _keep(self, node: Spike, train: Tensor) -> None:
        """Keep a new train, its mean where the readout reads it, and of the old ones those that are still read."""
        behind = self.graph.trains_behind
        if node.name in behind[self.graph.output]:
            level = broadcast(self.parameters[f"{node.name}.threshold"], train.shape[1:])
            self.means[node.name] = train.mean(0, dtype=level.dtype) * level
        self.trains[node.name] = train
        later = self.graph.spikes[self.graph.spikes.index(node) + 1 :]
        read = frozenset().union(*(behind[layer.inputs[0]] for layer in later))
        self.trains = {name: kept for name, kept in self.trains.items() if name in read}

    def _shift_bias(self, layer: str, shift: Tensor) -> None:
        self.parameters[f"{layer}.bias"] = self.parameters[f"{layer}.bias"] + shift
        if layer in self.constants:
            self.constants = constant_values(self.graph, self.parameters, self.images)

    def _calibrate_readout(self, activation: Tensor) -> None:
        """Calibrate the last, analog layer likewise: its output over T steps is that of the mean spikes."""
        site = self.graph.calibration_site(self.graph.output)
        if site is not None:
            values = {**self.constants, **self.means}
            for node in self.graph.nodes:
                if node.name not in values and self.graph.trains_behind[node.name] <= self.means.keys():
                    values[node.name] = analog_value(node, values, self.parameters)
            self._shift_bias(site.name, _channel_mean(activation - values[self.graph.output], 1))


def _by_channel(value: Tensor) -> Tensor:
    """View ``[N, C, *space]`` as ``[C, N * space]``."""
    return value.transpose(0, 1).flatten(1)


def _channel_mean(value: Tensor, channel: int) -> Tensor:
    """Average over every dimension but ``channel``."""
    return value.mean([dim for dim in range(value.dim()) if dim != channel])
