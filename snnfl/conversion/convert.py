"""From a trained ANN to a calibrated spiking network, layer by layer (SNFL Algorithm 1, ANN-TO-SNN)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snnfl.config import ConversionConfig, ConversionSearch
from snnfl.conversion.calibration import channel_mean, channel_sum, correct_in_time
from snnfl.conversion.folding import fold
from snnfl.conversion.memory import MemoryPlan, plan_memory
from snnfl.conversion.replay import CurrentStore, Replay
from snnfl.conversion.search import choose
from snnfl.conversion.sharing import SharedValues
from snnfl.conversion.silence import check_variety, warn_of_silence
from snnfl.conversion.thresholds import find_thresholds
from snnfl.conversion.trains import STEPS, Layer, Train, silent
from snnfl.neurons import NeuronState
from snnfl.spiking.graph import Spike, SpikingGraph
from snnfl.spiking.in_time import add_drive, constant_values, in_fast_layout, readout
from snnfl.spiking.network import SpikingNetwork
from snnfl.spiking.trace import trace_with_state
from snnfl.spiking.values import analog_value, check_images, value_shadows
from snnfl.spiking.ways_out import ConversionError


def convert(model: nn.Module, images: Tensor, config: ConversionConfig | ConversionSearch) -> SpikingNetwork:
    """Convert a trained network to a calibrated spiking one.

    Layers are converted in order. Of each, the ANN's activations on ``images`` give the threshold, the spikes that
    the layers before it emit give its input current, and the difference between activation and spike rate is what
    calibration takes back, channel by channel, over ``T = config.calibration_length`` steps, or over those of them that
    ``config.readout`` names:

    - ``bias``: ``b <- b + mean(a) - mean(s)`` (SNFL equation 6; Li et al. 2021, "bias correction"). The readout is
      calibrated likewise. A layer without a bias of its own, such as one behind a pooling, is left as it is; of a sum
      a term of its own channels is calibrated, not one that broadcasts.
    - ``potential``: ``v(0) <- v(0) + T (mean(a) - mean(s))`` (Li et al. 2021, section 4.3, "potential correction").
      They take the mean over images alone, for each neuron; here it is over space too, so that an update's size doesn't
      depend on the images and a server may average it, as it does biases.
    - ``bias_potential``: the bias first, then the potential for the error that is left.
    - ``time_bias``: :func:`~snnfl.conversion.calibration.correct_in_time`, step by step.

    A threshold that the ANN has learned (:class:`~snnfl.quantisation.QCFS`) is taken as it is. A layer's spike train is
    kept for the next, and a value for all that read it (:mod:`.sharing`), so the cost is
    linear in depth; the current is linear in the bias, so one pass of convolutions serves the uncalibrated and the
    calibrated run. Values and currents that don't fit into ``config.max_bytes`` are computed again. That ceiling
    covers activations, spike trains (eight steps to a byte), values, currents and buffers, but neither the model, nor
    what PyTorch's own kernels use while they run.

    Args:
        model: The ANN, taken in evaluation mode; neither its parameters nor its mode are changed.
        images: Calibration images, shape ``[N, ...]``, normalised as in training, of the model's type and device.
        config: Steps, thresholds and calibration; of a search (:meth:`~snnfl.config.ConversionConfig.search`) the best
            way by :func:`~snnfl.conversion.search.choose`.

    Returns:
        The spiking network, with parameters of its own.

    Raises:
        ConversionError: If the model doesn't convert.
        ValueError: If the images are empty, not finite, or don't fit the model, or ``max_bytes`` is too low.
    """
    shape = tuple(images.shape[1:]) if isinstance(images, Tensor) and images.dim() > 1 else None
    tried = config.candidates if isinstance(config, ConversionSearch) else (config,)
    graph, state = trace_with_state(model, max_pooling=tried[0].max_pooling, input_shape=shape)
    if len(tried) > 1:
        chosen, _ = choose(tried, lambda part, one: convert_state(graph, state, part, one), images)
        return convert_state(graph, state, images, chosen)
    return convert_state(graph, state, images, tried[0])


@torch.no_grad()
def convert_state(
    graph: SpikingGraph, state: Mapping[str, Tensor], images: Tensor, config: ConversionConfig
) -> SpikingNetwork:
    """Convert as :func:`convert`, from a graph that was traced before and an ANN's arrays by name."""
    parameters = fold(graph, state)
    if not graph.affines:
        raise ConversionError("the model has no convolution or linear layer, so there are no weights to convert")
    if lacking := [name for name in graph.learned_thresholds if name not in parameters]:
        raise ValueError(f"the state has no {lacking[0]}, which the graph's activation has learned")
    check_images(images, next(iter(parameters.values())), "calibration images")
    check_variety(images)
    shadows = value_shadows(graph, parameters, images, "calibration images")
    sizes = {name: value.nbytes for name, value in shadows.items()}
    channels = {name: value.shape[1] for name, value in shadows.items()}
    plan = plan_memory(graph, sizes, images=len(images), itemsize=images.element_size(), config=config)
    return _Conversion(graph, parameters, in_fast_layout(images), config, plan, channels).run()


@dataclass
class _Conversion:
    """One walk over the graph, with the ANN's activations and the spike trains that later layers still read."""

    graph: SpikingGraph
    parameters: dict[str, Tensor]
    images: Tensor
    config: ConversionConfig
    plan: MemoryPlan
    channels: Mapping[str, int]
    means: list[dict[str, Tensor]] = field(default_factory=list)
    """Mean trains that the readout is computed from, over each span of time."""
    silent: list[str] = field(default_factory=list)
    """Layers that never spike."""

    def run(self) -> SpikingNetwork:
        original = dict(self.parameters)  # what the ANN's activations are computed from
        self.steps = self.config.calibration_length
        self.first = self._network().first_read(self.steps)
        # Up to a step a maximum commutes with the mean over time, but not between two steps.
        late = self.graph.has_late_maxima and self.first > 0
        self.spans = [(0, self.steps), (0, self.first)] if late else [(self.first, self.steps)]
        self.means = [{} for _ in self.spans]
        shared = SharedValues(self.plan.sharing, self.plan.shared_images, self.steps)
        self.replay = Replay(self.graph, self.parameters, self._constants(), shared)
        self.store = CurrentStore(self.plan.stored, self.images)
        analog = {self.graph.input: self.images}
        for node in self.graph.nodes:
            analog[node.name] = analog_value(node, analog, original)
            if isinstance(node, Spike):
                self._convert_layer(node, analog[node.name])
            for name in self.graph.freed_after[node.name]:
                del analog[name]
        if self._calibrates("bias"):
            self._calibrate_readout(analog[self.graph.output])
        warn_of_silence(self.silent, self.steps)
        return self._network()

    def _calibrates(self, what: str) -> bool:
        """Tell whether the error of a layer's mean rate goes into its bias or its initial potential."""
        return self.config.calibration in (what, "bias_potential")

    def _network(self) -> SpikingNetwork:
        return SpikingNetwork.configured(self.graph, self.parameters, self.config)

    def _constants(self) -> dict[str, Tensor]:
        return constant_values(self.graph, self.parameters, self.images)

    def _convert_layer(self, node: Spike, activation: Tensor) -> None:
        """Find a layer's thresholds, calibrate what flows into it and record its spike train."""
        if node.levels is None:
            try:
                thresholds = find_thresholds(activation, self.steps, self.config, ceiling=node.ceiling)
            except ValueError as reason:
                raise ValueError(f"{node.name}: {reason}") from None
            self.parameters[f"{node.name}.threshold"] = thresholds
        for name in self.plan.sharing.before[node.name]:
            self.replay.share(name, self._shared_chunks(node))
        if self.config.calibration == "time_bias":
            self._record_with_time_bias(node, activation)
            return
        self.store.clear()
        target = channel_mean(activation)
        site = self.graph.calibration_site(node.inputs[0], self.channels) if self._calibrates("bias") else None
        shift = None if site is None else (target - self._mean_rate(node, activation, None)).to(activation)
        if self._calibrates("potential"):
            error = target - self._mean_rate(node, activation, shift)
            self.parameters[f"{node.name}.potential"] = (self.steps * error).to(activation)
        self._record(node, activation, shift)
        if site is not None and shift is not None:
            self._shift_bias(site.name, shift)

    def _mean_rate(self, node: Spike, activation: Tensor, shift: Tensor | None) -> Tensor:
        """Run a layer; return the mean spikes of the steps that are read, times the threshold, as float64 ``[C]``.

        Charge is conserved: what flowed in has left as spikes or is still on the membrane.
        """
        layer, everything = self._layer(node, activation, shift), slice(None)
        charge = torch.zeros(activation.shape[1], dtype=torch.float64, device=activation.device)
        for images in self._blocks(node):
            state = self._at_rest(layer, node, activation[images])
            forgotten = silent(STEPS, activation[images], layer)
            for start, current in self._currents(node, images, activation[0].numel()):
                unread = min(max(self.first - start, 0), len(current))
                if unread:
                    forgotten.fire(everything, 0, current[:unread], state._replace(time=start))
                if unread < len(current):
                    if start <= self.first:
                        charge += channel_sum(state.potential, 1)
                    charge += channel_sum(current[unread:], 2)
                    forgotten.fire(everything, 0, current[unread:], state._replace(time=start + unread))
            charge -= channel_sum(state.potential, 1)
        rate = charge / ((self.steps - self.first) * (activation.numel() // len(charge)))
        return rate if layer.drive is None else rate + layer.drive

    def _record(self, node: Spike, activation: Tensor, shift: Tensor | None) -> None:
        """Run a layer and keep its spikes."""
        layer = self._layer(node, activation, shift)
        train = silent(self.steps, activation, layer)
        for images in self._blocks(node):
            state = self._at_rest(layer, node, activation[images])
            for start, current in self._currents(node, images, activation[0].numel()):
                train.fire(images, start, current, state._replace(time=start))
        self._keep(node, train)

    def _at_rest(self, layer: Layer, node: Spike, activation: Tensor) -> NeuronState:
        """Return the state of a layer's neurons before the first step."""
        potential = self._network().rest(node.name, activation)
        return NeuronState(potential, total=layer.neuron.no_spikes(potential))

    def _record_with_time_bias(self, node: Spike, activation: Tensor) -> None:
        """Find a layer's bias at each time step, and keep the spikes that it then fires."""
        layer, network = self._layer(node, activation, None), self._network()
        train, target = silent(self.steps, activation, layer), channel_mean(activation)
        potential, everything = network.rest(node.name, activation), slice(0, len(self.images))
        biases = []
        for step in range(self.steps):
            current = self.replay.current(node.inputs[0], everything, step, step + 1)
            current = add_drive(current, None if layer.drive is None else layer.drive[None])
            bias, spikes = correct_in_time(current, layer.neuron, potential, target)
            train.record(everything, step, spikes)
            biases.append(bias)
        self.parameters[f"{node.name}.time_bias"] = torch.stack(biases)
        self._keep(node, train)

    def _layer(self, node: Spike, activation: Tensor, shift: Tensor | None) -> Layer:
        """Make a layer's neurons, into which a drip and the shift of a bias flow at each step."""
        drip = self._network().drive(node.name, 0, 1, self.steps)
        drive = shift if drip is None else drip[0] if shift is None else drip[0] + shift
        return Layer(self._network().neuron(node.name), drive, torch.empty_like(activation[:1]))

    def _blocks(self, node: Spike) -> Iterator[slice]:
        size, shared, count = self.plan.chunks[node.name][0], self.plan.shared_images, len(self.images)
        for first, end in ((0, shared), (shared, count)):  # a block is on one side of what is kept, or on the other
            yield from (slice(start, min(start + size, end)) for start in range(first, end, size))

    def _shared_chunks(self, node: Spike) -> Iterator[tuple[slice, int, int]]:
        length = self.plan.chunks[node.name][1]
        for images in self._blocks(node):
            if images.stop <= self.plan.shared_images:
                for start in range(0, self.steps, length):
                    yield images, start, min(start + length, self.steps)

    def _currents(self, node: Spike, images: slice, neurons: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the current of some images in chunks of time, each with its first step."""
        source, length = node.inputs[0], self.plan.chunks[node.name][1]
        keeps = source in self.graph.varying
        if self.graph.maxima:  # they remember the steps before: so all of them are kept, or none
            keeps = keeps and self.store.fits((images.stop - images.start) * neurons * self.steps)
        for start in range(0, self.steps, length):
            key = (images.start, start)
            current = self.store.get(key)
            if current is None:
                current = self.replay.current(source, images, start, min(start + length, self.steps))
                if keeps:
                    self.store.put(key, current)
            yield start, current

    def _keep(self, node: Spike, train: Train) -> None:
        """Keep a layer's train for later layers, and its mean where the readout reads it."""
        if not train.fires:
            self.silent.append(node.name)
        self.replay.keep(node.name, train)
        if node.name in self.graph.trains_behind[self.graph.output]:
            for means, (start, stop) in zip(self.means, self.spans, strict=True):
                means[node.name] = train.mean(start, stop)

    def _shift_bias(self, layer: str, shift: Tensor) -> None:
        self.parameters[f"{layer}.bias"] = self.parameters[f"{layer}.bias"] + shift
        if layer in self.replay.constants:
            self.replay.constants.clear()  # so that old and new ones are never held at once
            self.replay.constants.update(self._constants())

    def _calibrate_readout(self, activation: Tensor) -> None:
        """Calibrate the last, analog layer likewise: its output is that of the mean spikes."""
        site = self.graph.calibration_site(self.graph.output, self.channels)
        if site is not None:
            mean, *before = (
                channel_mean(readout(self.graph, self.parameters, {**self.replay.constants, **means}))
                for means in self.means
            )
            if before:
                mean = (self.steps * mean - self.first * before[0]) / (self.steps - self.first)
            self._shift_bias(site.name, (channel_mean(activation) - mean).to(activation))
