"""A spiking network, its simulation in time and its analog twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snnfl.neurons import Neuron, NeuronState, scan
from snnfl.neurons.events import EventLayer
from snnfl.spiking.correction import corrected_start
from snnfl.spiking.events import event_layers
from snnfl.spiking.graph import MaxPool, Parameters, Spike
from snnfl.spiking.in_time import (
    accumulating,
    add_drive,
    constant_values,
    in_fast_layout,
    linear_value,
    over_time,
    readout,
)
from snnfl.spiking.maximum import gated_maximum
from snnfl.spiking.network_neurons import NetworkNeurons, lengths
from snnfl.spiking.recording import MAX_RECORDING, Fire, Probe, Recording, chosen_layers, run_neurons
from snnfl.spiking.state import State, Step
from snnfl.spiking.values import analog_value, check_images, check_size, value_bytes, value_shadows

CHUNK_BYTES = 2 * 2**20
"""Size of the widest tensor of a chunk of time: a few such tensors stay in a third-level cache, which makes a third of
the speed, and glibc reuses their memory, where it maps every tensor above 32 MB anew."""

WEIGHT_BYTES = 16 * 2**20
"""Chunks grow up to this size with the largest weight, which is read anew for each chunk."""

CHUNK_STEPS = 8
"""Time steps per chunk: enough that reading and writing the membrane potential once per chunk costs little."""


@dataclass(frozen=True, repr=False)
class SpikingNetwork(NetworkNeurons):
    """A spiking graph with its folded weights, biases and thresholds; attributes are those of :class:`NetworkNeurons`.

    ``network(images)`` returns logits, :meth:`simulate` those of several lengths, :meth:`record` the spikes and
    membrane potentials behind them; :meth:`step` takes one time step of a state that the caller holds.
    """

    def __call__(self, images: Tensor, *, steps: int | None = None) -> Tensor:
        """Return logits ``[N, classes]`` after ``steps`` time steps, or as many as the network was converted for."""
        length = self._length(steps)
        return self.simulate(images, steps=length)[length]

    @torch.inference_mode()
    def simulate(self, images: Tensor, *, steps: int, curve: Sequence[int] = ()) -> dict[int, Tensor]:
        """Run the network for ``steps`` time steps with the analog image as input at each one.

        Time advances in chunks; within one, a layer sees chunk x batch samples at once and the membrane potentials
        are carried to the next. Layers before the first spike are computed once, those after the last one once per
        point of the curve, on the mean of the spikes: they are linear, so this is exact.

        Args:
            images: Shape ``[N, ...]``.
            steps: Simulation length T.
            curve: Other lengths whose logits are wanted too, also beyond ``steps``. They are points of this one run: a
                drip is that of ``steps`` at all of them, so only with it do they differ from runs of their own.

        Returns:
            Logits ``[N, classes]`` for ``steps`` and every length in ``curve``, averaged over the steps that
            ``readout`` names.

        Raises:
            ValueError: If a length is no whole number of at least 1, or beyond a drip's ``steps`` or the biases in
                time, or the images are no tensor, empty, not finite, of another type or device than the network, or
                don't fit.
        """
        return self._simulate(images, lengths(steps, curve), steps)

    @torch.inference_mode()
    def record(
        self,
        images: Tensor,
        *,
        layers: Sequence[str] | None = None,
        steps: int | None = None,
        max_bytes: int = MAX_RECORDING,
    ) -> Recording:
        """Run the network as :meth:`simulate` does, bit for bit, and keep what its neurons do at each step.

        Args:
            images: Shape ``[N, ...]``.
            layers: Spiking layers by name; all of them by default.
            steps: Simulation length T; by default as many as the network was converted for.
            max_bytes: Ceiling of the memory that spikes and potentials take.

        Returns:
            Spikes, membrane potentials and logits.

        Raises:
            ValueError: If a layer is unknown or the recording doesn't fit ``max_bytes``; also as :meth:`simulate`.
        """
        length = self._length(steps)
        check_images(images, next(iter(self.parameters.values())))
        sizes = value_shadows(self.graph, self.parameters, images)
        wanted = chosen_layers([node.name for node in self.graph.spikes], layers)
        probe = Probe.of({name: sizes[name] for name in wanted}, len(images), length, max_bytes, counts=self.counts)
        (logits,) = self._simulate(images, [length], length, probe).values()
        thresholds = {name: self.thresholds[name] for name in wanted}
        return Recording(spikes=probe.spikes, potentials=probe.potentials, thresholds=thresholds, logits=logits)

    @torch.no_grad()
    def start(self, images: Tensor, *, steps: int | None = None) -> State:
        """Return the state before the first time step.

        Args:
            images: Of the shape that every step will get, ``[N, ...]``; their values matter to a correction alone, in
                whose rehearsal they are shown.
            steps: Length of the whole simulation, which only a drip depends on; by default as many as the network was
                converted for.

        Raises:
            ValueError: If the images don't fit, or a drip's length isn't known.
        """
        given = steps is not None or self.initial_potential == "drip" or self.correction != "none"
        length = self._length(steps) if given else self.steps
        if length is not None and self.correction != "none":
            check_images(images, next(iter(self.parameters.values())))
            constants = constant_values(self.graph, self.parameters, in_fast_layout(images))
            return replace(self._rehearsed(constants, length, {}), steps=length, images=images.shape)
        shadows = value_shadows(self.graph, self.parameters, images)
        currents = {node.name: shadows[node.inputs[0]] for node in self.graph.spikes}
        likes = {name: value.new_empty(len(images), *value.shape[1:]) for name, value in currents.items()}
        potentials = {name: self.rest(name, in_fast_layout(like)) for name, like in likes.items()}
        return State(potentials, self._no_spikes(potentials), steps=length, images=images.shape)

    @torch.no_grad()
    def step(self, state: State, images: Tensor) -> tuple[State, Step]:
        """Take one time step.

        The images may be others at each step, such as frames of events. With the same ones, spikes are those of
        :meth:`simulate` up to rounding: that computes several steps at once, and skips what doesn't spike.

        Args:
            state: Before the step; it isn't changed.
            images: What flows in at this step, ``[N, ...]``.

        Returns:
            The state after the step, and what the network gave.

        Raises:
            ValueError: If the images don't fit the state, or there is no bias or drip for one more step.
        """
        if images.shape != state.images:
            raise ValueError(f"images of shape {[*images.shape]} do not fit the state, started with {[*state.images]}")
        self._check_steps(state.time + 1, state.steps)
        check_images(images, next(iter(self.parameters.values())))
        constants = constant_values(self.graph, self.parameters, in_fast_layout(images))
        after, spikes = state.copy(), dict[str, Tensor]()

        def fire(layer: str, neuron: Neuron, state: NeuronState, current: Tensor, start: int) -> Tensor:
            fired = scan(neuron, state, current)
            spikes[layer] = fired[0]
            return fired

        read = self._advance(constants, after, state.time, state.time + 1, state.steps or 1, {}, fire)
        output = readout(self.graph, self.parameters, {**constants, **{k: v.to(images.dtype) for k, v in read.items()}})
        return replace(after, time=state.time + 1), Step(output, spikes)

    def _simulate(
        self, images: Tensor, wanted: Sequence[int], steps: int, probe: Probe | None = None
    ) -> dict[int, Tensor]:
        self._check_steps(wanted[-1], steps)
        check_images(images, next(iter(self.parameters.values())))
        per_image = max(value_bytes(self.graph, self.parameters, images).values())
        images = in_fast_layout(images)
        weights = max((self.parameters[f"{node.name}.weight"].nbytes for node in self.graph.affines), default=0)
        block = max(1, max(CHUNK_BYTES, min(WEIGHT_BYTES, weights)) // (CHUNK_STEPS * per_image))
        layers = event_layers(self.graph, self.parameters)
        parts = []
        for start in range(0, len(images), block):
            part = slice(start, start + block)
            fire = run_neurons if probe is None else probe.of_images(part).fire
            parts.append(self._simulate_block(images[part], wanted, steps, layers, fire))
        return {point: torch.cat([part[point] for part in parts]) for point in wanted}

    @torch.inference_mode()
    def analog(self, images: Tensor) -> Tensor:
        """Compute the logits of the analog twin: the same weights and biases, with ReLU in place of the neurons."""
        check_size(self.graph, images)
        values = {self.graph.input: in_fast_layout(images)}
        for node in self.graph.nodes:
            values[node.name] = analog_value(node, values, self.parameters)
            for name in self.graph.freed_after[node.name]:
                del values[name]
        return values[self.graph.output]

    def _simulate_block(
        self, images: Tensor, wanted: Sequence[int], steps: int, layers: Mapping[str, EventLayer], fire: Fire
    ) -> dict[int, Tensor]:
        constants = constant_values(self.graph, self.parameters, images)
        state = State() if self.correction == "none" else self._rehearsed(constants, steps, layers)
        sums: dict[str, Tensor] = {}
        starts = {self.first_read(point) for point in wanted}
        results, before, done = dict[int, Tensor](), dict[int, dict[str, Tensor]](), 0
        for point in sorted({*wanted, *starts} - {0}):
            while done < point:
                stop = min(done + CHUNK_STEPS, point)
                for name, total in self._advance(constants, state, done, stop, steps, layers, fire).items():
                    sums[name] = sums[name] + total if name in sums else total
                done = stop
            if point in starts:
                before[point] = dict(sums)
            if point in wanted:
                first = self.first_read(point)
                read = {name: total - before[first][name] for name, total in sums.items()} if first else sums
                means = {name: (total / (point - first)).to(images.dtype) for name, total in read.items()}
                results[point] = readout(self.graph, self.parameters, {**constants, **means})
        return results

    def _rehearsed(self, constants: Parameters, steps: int, layers: Mapping[str, EventLayer]) -> State:
        """Simulate before the simulation of ``steps``; return the state that this starts from, corrected."""
        before, length = State(), self.rehearsal(steps)
        for start in range(0, length, CHUNK_STEPS):
            stop = min(start + CHUNK_STEPS, length)
            self._advance(constants, before, start, stop, length, layers, run_neurons)
        potentials = {
            name: corrected_start(self.correction, self.rest(name, after), after, self.parameters[f"{name}.threshold"])
            for name, after in before.potentials.items()
        }
        return State(potentials, self._no_spikes(potentials))

    def _advance(
        self,
        constants: Parameters,
        state: State,
        start: int,
        stop: int,
        steps: int,
        layers: Mapping[str, EventLayer],
        fire: Fire,
    ) -> dict[str, Tensor]:
        """Compute some of ``steps`` steps of every layer before the readout; return the sums that it reads."""
        graph, values, sums, length = self.graph, dict(constants), dict[str, Tensor](), stop - start
        for node in graph.body:
            if isinstance(node, Spike):
                current = over_time(values[node.inputs[0]], node.inputs[0] in constants, length)
                if node.name not in state.potentials:
                    state.potentials[node.name] = self.rest(node.name, in_fast_layout(current[0]))
                    state.counts |= self._no_spikes({node.name: state.potentials[node.name]})
                current = add_drive(current, self.drive(node.name, start, stop, steps))
                now = NeuronState(state.potentials[node.name], total=state.counts.get(node.name), time=start)
                values[node.name] = fire(node.name, self.neuron(node.name), now, current, start).flatten(0, 1)
            elif isinstance(node, MaxPool):
                read = over_time(values[node.inputs[0]], False, length)
                passed, state.maxima[node.name] = gated_maximum(node, read, state.maxima.get(node.name))
                values[node.name] = passed.flatten(0, 1)
            else:
                values[node.name] = linear_value(node, values, constants, self.parameters, length, layers)
            if node.name in graph.readout_inputs:
                value = values[node.name]
                sums[node.name] = over_time(value, False, length).sum(0, dtype=accumulating(value))
            for name in graph.freed_after[node.name]:
                del values[name]
        return sums
