"""What an owner publishes: a spiking network as PrivateSNN leaves it, and how it computes.

Neurons are those of the paper (Kim, Venkatesha & Panda, "PrivateSNN: Privacy-preserving spiking neural networks", AAAI
2022, eq. 1) with the soft reset of its text:

========  ==============================================================================================
charge    ``u(t) = leak v(t-1) + W o(t) + b``
fire      ``s(t) = 1`` where ``u(t) >= V_th``, else 0; the layer's output is ``V_th s(t)``
reset     ``v(t) = u(t) - V_th s(t)``
readout   the last layer's potential after ``T`` steps, which neither leaks nor fires, divided by ``T``
maximum   of a window, the growth of its largest sum so far (:mod:`snnfl.spiking.maximum`); the paper has none
========  ==============================================================================================

Spikes are worth their threshold, as those of all converted networks here. The paper's are worth 1, and its thresholds
are divided by the one before; that is the same network, spike for spike, but residual sums would need further weights.
So weights and biases before encryption are exactly those of the ANN, with its batch normalisation folded into them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from snnfl.neurons import ENCODINGS, Neuron, by_subtraction, surrogate_spike, unroll
from snnfl.spiking.graph import GraphNode, MaxPool, Parameters, Spike, SpikingGraph
from snnfl.spiking.in_time import in_fast_layout, readout
from snnfl.spiking.maximum import Accumulated, gate
from snnfl.spiking.summary import summary
from snnfl.spiking.values import analog_value, check_images, value_shadows

CHUNK_STEPS = 8
"""Time steps that are computed at once where nobody differentiates."""

SURROGATE = "triangular_damped"
"""Of encryption: the triangle of eq. 5, with the factor 0.3 of the authors' code."""

BESIDE = "/"
"""Between a maximum's name and what it remembers; no neuron's name has one."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PublishedNetwork:
    """A spiking network that an owner ships: all that a device needs to run it, and all that a thief gets.

    ``network(images, generator)`` returns logits. Nothing of the owner's data, the ANN or the training is in it.

    Attributes:
        graph: The structure: every operation, and which layer reads which.
        parameters: ``<layer>.weight`` and ``<layer>.bias`` of every affine layer; of every layer of neurons
            ``<relu>.threshold`` (positive) and ``<relu>.leak`` (in ``[0, 1]``; 1: none is lost), each of shape ``[1]``
            or ``[C]``, and if it has one the potential before the first step, ``<relu>.potential``, ``[1]`` or ``[C]``.
        steps: ``T``.
        input_shape: Of an image, ``(C, H, W)``.
        encoding: ``poisson``: at each step ``sign(x)`` with probability ``|x|``; ``direct``: ``x`` at each step.
        input_scale: What divides the images before they are encoded, and multiplies their spikes: the largest
            magnitude of a normalised pixel, or larger ones would be cut off by ``poisson``.
    """

    graph: SpikingGraph
    parameters: Parameters
    steps: int
    input_shape: tuple[int, ...]
    encoding: Literal["poisson", "direct"] = "poisson"
    input_scale: float = 1.0

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return logits ``[N, classes]`` after all steps, without gradients.

        Args:
            images: Normalised as in training, ``[N, *input_shape]``.
            generator: Draws the spikes of ``poisson``, on the images' device; ``direct`` needs none.

        Raises:
            ValueError: If images don't fit, or a generator is missing.
        """
        return self.simulate(images, generator, curve=(self.steps,))[self.steps]

    def __repr__(self) -> str:
        options = {"steps": self.steps, "encoding": self.encoding, "input_scale": self.input_scale}
        return summary(self.graph, self.parameters, options)

    @torch.no_grad()
    def simulate(
        self, images: Tensor, generator: torch.Generator | None = None, *, curve: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return the logits of one simulation after each of some numbers of steps, without gradients.

        Args:
            images: As for a call.
            generator: Likewise.
            curve: Numbers of steps, also beyond :attr:`steps`.

        Raises:
            ValueError: As a call.
        """
        self.check(images)
        return dict(run(self, images, generator, lengths=sorted(set(curve))))

    def check(self, images: Tensor) -> None:
        """Check that images fit.

        Raises:
            ValueError: Naming what doesn't.
        """
        check_images(images, next(iter(self.parameters.values())))
        value_shadows(self.graph, self.parameters, images)

    def analog(self, images: Tensor) -> Tensor:
        """Return the logits of the same weights and biases with ReLU in the place of the neurons; differentiable."""
        return analog(self.graph, self.parameters, images)

    def holding(self, parameters: Parameters) -> PublishedNetwork:
        """Return the network with other parameters."""
        return replace(self, parameters=parameters)


def analog(graph: SpikingGraph, parameters: Parameters, images: Tensor) -> Tensor:
    """Compute the ANN of some weights and biases, ``[N, ...]`` to ``[N, classes]``, differentiably."""
    values = {graph.input: in_fast_layout(images)}
    for node in graph.nodes:
        values[node.name] = analog_value(node, values, parameters)
        for name in graph.freed_after[node.name]:
            del values[name]
    return values[graph.output]


def run(
    network: PublishedNetwork,
    images: Tensor,
    generator: torch.Generator | None,
    *,
    lengths: Sequence[int],
    chunk: int | None = None,
    surrogate: str = SURROGATE,
) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(t, logits)`` after each of some numbers of steps of one simulation; differentiable.

    Time runs in chunks. Where gradients are wanted, only the potentials between two chunks are kept, and a chunk is
    computed again, with the same draws, when its gradient is: for ``T`` steps in chunks of ``K`` that takes the memory
    of ``K`` steps and of ``T/K`` states, which is least for ``K = sqrt(T)``, the default, and a forward pass more.
    Neither draws nor results depend on the chunks.

    Args:
        network: Structure and parameters, which may require gradients.
        images: Shape ``[N, *input_shape]``; of ``direct`` they may require gradients.
        generator: Of ``poisson``; moved on by what it draws.
        lengths: Numbers of steps, ascending.
        chunk: ``K``.
        surrogate: Name of the surrogate gradient, by the potential in units of the threshold.
    """
    differentiates = torch.is_grad_enabled()
    size = chunk or (math.isqrt(max(lengths) - 1) + 1 if differentiates else CHUNK_STEPS)
    samples = in_fast_layout(images) / network.input_scale
    if generator is None and ENCODINGS.find(network.encoding).random:
        raise ValueError(f"encoding={network.encoding} draws spikes: give a torch.Generator of the images' device")
    potentials, sums, done = dict[str, Tensor](), dict[str, Tensor](), 0
    for length in lengths:
        while done < length:
            steps = min(size, length - done)
            part = _Chunk(network, samples, steps, None if generator is None else generator.get_state(), surrogate)
            if differentiates:
                potentials, read = checkpoint(part, potentials, use_reentrant=False, preserve_rng_state=False)
            else:
                potentials, read = part(potentials)
            if generator is not None and part.drawn is not None:
                generator.set_state(part.drawn)
            sums = {name: sums[name] + value if name in sums else value for name, value in read.items()}
            done += steps
        means = {name: total / length for name, total in sums.items()}
        yield length, readout(network.graph, network.parameters, means)


@dataclass
class _Chunk:
    """Some steps as a function of the potentials before them, which gives the same whenever it is called.

    Attributes:
        draws: State of the generator before the first step.
        drawn: After the last one.
    """

    network: PublishedNetwork
    samples: Tensor
    steps: int
    draws: Tensor | None
    surrogate: str
    drawn: Tensor | None = None

    def __call__(self, potentials: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        generator = None
        if self.draws is not None:
            generator = torch.Generator(self.samples.device)
            generator.set_state(self.draws)
        current = encoded(self.network, self.samples, self.steps, generator)
        self.drawn = None if generator is None else generator.get_state()
        return advance(self.network, current, self.steps, potentials, self.surrogate)


def advance(
    network: PublishedNetwork,
    current: Tensor,
    steps: int,
    potentials: Mapping[str, Tensor],
    surrogate: str = SURROGATE,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take some steps, without changing what is given; differentiable.

    Args:
        network: Structure and parameters.
        current: What flows in, ``[steps, N, *input_shape]``, or ``[1, ...]`` if it is constant.
        steps: How many.
        potentials: Before the first of them, by layer of neurons, ``[N, C, *space]``, and the sums that maxima have
            seen; empty: at rest.
        surrogate: Name of the surrogate gradient.

    Returns:
        The potentials after the last step, and the sums over the steps of what the readout is computed from.
    """
    graph, after, sums = network.graph, dict(potentials), dict[str, Tensor]()
    body = [node for node in graph.nodes if node.name not in graph.tail]
    for name, value in walk(network, body, current, steps, after, surrogate):
        if name in graph.readout_inputs:
            sums[name] = value.sum(0) * (steps / len(value))
    return after, sums


def walk(
    network: PublishedNetwork,
    nodes: Sequence[GraphNode],
    current: Tensor,
    steps: int,
    potentials: dict[str, Tensor],
    surrogate: str = SURROGATE,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each value over some steps, ``[steps, N, ...]``, or ``[1, N, ...]`` if it is constant; differentiable.

    Args:
        network: Structure and parameters.
        nodes: Those to compute, in the graph's order, with all that they read.
        current: What flows in, as for :func:`advance`.
        steps: How many.
        potentials: As there; each layer's entry is replaced by that after the last step.
        surrogate: Name of the surrogate gradient.
    """
    values = {network.graph.input: current}
    yield network.graph.input, current
    for node in nodes:
        read = [values[source] for source in node.inputs]
        if isinstance(node, Spike):
            before = potentials.get(node.name)
            values[node.name], potentials[node.name] = fire(
                network.parameters, node.name, read[0], steps, before, surrogate
            )
        elif isinstance(node, MaxPool):
            values[node.name] = _largest(node, read[0].expand(steps, *read[0].shape[1:]), potentials)
        else:
            length = max(map(len, read))
            flat = [value.expand(length, *value.shape[1:]).flatten(0, 1) for value in read]
            found = node.apply(flat, network.parameters)
            values[node.name] = found.view(length, -1, *found.shape[1:])
        yield node.name, values[node.name]
        for name in network.graph.freed_after[node.name]:
            del values[name]


def _largest(node: MaxPool, value: Tensor, potentials: dict[str, Tensor]) -> Tensor:
    """Run a maximum over some steps, ``[steps, N, ...]``; what it remembers is kept beside the potentials."""
    names = [f"{node.name}{BESIDE}{kind}" for kind in Accumulated._fields]
    before = Accumulated(*(potentials[name] for name in names)) if names[0] in potentials else None
    passed, after = gate(node, value, before)
    potentials.update(zip(names, after, strict=True))
    return passed


def fire(
    parameters: Parameters, layer: str, current: Tensor, steps: int, before: Tensor | None, surrogate: str = SURROGATE
) -> tuple[Tensor, Tensor]:
    """Run the neurons of one layer.

    Args:
        parameters: Of the network.
        layer: Name of the layer.
        current: Shape ``[steps, N, C, *space]``, or ``[1, ...]`` if it is constant.
        steps: How many.
        before: Potentials before the first of them, ``[N, C, *space]``; ``None``: at rest.
        surrogate: Name of the surrogate gradient.

    Returns:
        Spikes, each worth the threshold, ``[steps, N, C, *space]``, and the potentials after the last step.
    """
    threshold, leak = parameters[f"{layer}.threshold"], parameters[f"{layer}.leak"]
    if before is None:
        before = _per_channel(parameters.get(f"{layer}.potential", torch.zeros_like(threshold)), current[0])
        before = torch.zeros_like(current[0]) + before
    unit = threshold
    if threshold.numel() > 1:  # the fused scans know one threshold: potentials count in units of each channel's
        unit, level = torch.ones_like(threshold[:1]), _per_channel(threshold, current[0])
        current, before = current / level, before / level
    neuron = Neuron(
        threshold=unit,
        leak=leak if leak.numel() == 1 else _per_channel(leak, current[0]),
        spike=surrogate_spike(surrogate, slope=1 / float(unit.detach()), strict=False),
        reset=by_subtraction,
        detached=True,
        unit_spikes=True,
    )
    drive = (current[0], steps) if len(current) == 1 else (current,)
    spikes, charged = unroll(neuron, *drive, before=before, potentials=True)
    left = charged[-1] - spikes[-1].detach() * unit
    level = _per_channel(threshold, current[0])
    return spikes * level, left if threshold.numel() == 1 else left * level


def encoded(network: PublishedNetwork, samples: Tensor, steps: int, generator: torch.Generator | None) -> Tensor:
    """Return what flows in for some steps, ``[steps or 1, N, *input_shape]``.

    Args:
        network: Tells the encoding.
        samples: Images divided by :attr:`PublishedNetwork.input_scale`.
        steps: How many.
        generator: Draws step after step, so that nothing depends on how many are asked for at once.
    """
    encoding = ENCODINGS.find(network.encoding)
    several = range(steps if encoding.random else 1)
    found = torch.cat([encoding.encode(samples[None], 1, generator) for _ in several]) * network.input_scale
    return _channels_last(found) if samples.dim() == 4 else found


def _channels_last(value: Tensor) -> Tensor:
    """Lay pictures over time out channels last, ``[T, N, C, H, W]``."""
    return value.movedim(2, -1).contiguous().movedim(-1, 2)


def _per_channel(parameter: Tensor, like: Tensor) -> Tensor:
    """Give ``[1]`` or ``[C]`` trailing axes, so that it broadcasts over ``[N, C, *space]``."""
    return parameter.view(-1, *[1] * (like.dim() - 2))
