"""Images of a trained network alone: class similarity, soft labels, and pixels that the network sees so.

Kim et al., "PrivateSNN", AAAI 2022, section "Data-Free Conversion" and Algorithm 2, step 1, after Nayak et al.,
"Zero-shot knowledge distillation in deep networks", ICML 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from snnfl.config import ConversionConfig, SynthesisConfig
from snnfl.conversion import fold
from snnfl.spiking.graph import Affine, Parameters, SpikingGraph
from snnfl.spiking.in_time import in_fast_layout
from snnfl.spiking.values import analog_value
from snnfl.spiking.ways_out import ConversionError
from snnfl.training.optimisers import AdamState, adam_step

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""By affine layer: mean and variance of each channel behind its batch normalisation, ``[C]`` each."""


class Normalised(Protocol):
    """What is read of a data set, which this room doesn't import: whoever attacks imports this room, and no data."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a sample."""

    @property
    def train_images(self) -> Tensor:
        """As they are stored; of ``uint8`` only the type is looked at."""

    @property
    def lowest(self) -> float:
        """What stands for 0."""

    @property
    def scale(self) -> float:
        """What stands for 1."""

    def normalise(self, images: Tensor) -> Tensor:
        """Bring stored values to what networks see."""


class Bounds(NamedTuple):
    """What pixels can be, normalised as in training: each broadcasts over ``[N, *input_shape]``."""

    low: Tensor
    high: Tensor

    @property
    def scale(self) -> float:
        """The largest magnitude of a pixel."""
        return float(torch.maximum(self.low.abs(), self.high.abs()).max())


def bounds_of(dataset: Normalised) -> Bounds:
    """Return what pixels can be, by a data set's normalisation: what stands for 0 and 1 of its stored values.

    Of ``uint8`` pictures no picture is looked at; of real numbers the range is that of the training split.
    """
    like = torch.zeros(1, *dataset.input_shape, dtype=dataset.train_images.dtype)
    low, high = (dataset.normalise(torch.full_like(like, value)) for value in (dataset.lowest, dataset.scale))
    return Bounds(low, high)


def class_similarity(weight: Tensor, kind: Literal["minmax", "printed"] = "minmax") -> Tensor:
    """Return how similar each class is to each other one, by the rows of the last layer, ``[classes, classes]``.

    ``printed`` is eq. 2, ``s_ij = w_i w_j / (|w_i|^2 |w_j|^2)``; it may be negative, which no concentration of a
    Dirichlet can be, and shrinks with the square of the weights' scale, which means nothing. ``minmax``, the default,
    is what the authors' code does: cosines, each row brought to ``0..1``; so each row's own class has 1 and its least
    similar one exactly 0.

    Args:
        weight: Shape ``[classes, features]``.
        kind: Of these two.

    >>> class_similarity(torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))[0].tolist()
    [1.0, 0.0, 0.7071067690849304]
    """
    if kind == "printed":
        norms = weight.square().sum(1)
        return weight @ weight.T / (norms[:, None] * norms)
    rows = functional.normalize(weight, dim=1)
    cosines = rows @ rows.T
    low, high = cosines.amin(1, keepdim=True), cosines.amax(1, keepdim=True)
    return (cosines - low) / (high - low).clamp_min(torch.finfo(weight.dtype).tiny)


def last_weight(graph: SpikingGraph, parameters: Parameters) -> Tensor:
    """Return the weight of the output layer, ``[classes, features]``.

    Raises:
        ConversionError: If the network doesn't end with a linear layer, whose rows are the classes.
    """
    node = graph.by_name[graph.output]
    if not isinstance(node, Affine) or node.op != "linear":
        raise ConversionError(f"{graph.output} is the network's output, and no linear layer whose rows are the classes")
    return parameters[f"{node.name}.weight"]


def soft_labels(similarity: Tensor, count: int, generator: torch.Generator, *, floor: float) -> Tensor:
    """Draw soft labels ``y ~ Dir(max(s_c, floor))``, classes in turn: the first of each, then the second.

    Args:
        similarity: Shape ``[classes, classes]``; row ``c`` is the concentration of class ``c``.
        count: How many.
        generator: Draws a seed, for PyTorch's own Dirichlet knows no generator.
        floor: Smallest concentration; a Dirichlet has none of zero.

    Returns:
        Shape ``[count, classes]``, float32; each row sums to 1. The largest of row ``n`` need not be class ``n``'s.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    draw, rows = np.random.default_rng(seed), similarity.double().clamp_min(floor).cpu().numpy()
    labels = np.stack([draw.dirichlet(rows[index % len(rows)]) for index in range(count)])
    return torch.from_numpy(labels).float()


def norm_statistics(graph: SpikingGraph, state: Parameters) -> Statistics:
    """Return what batch normalisation's running statistics say of its outputs: mean ``beta``, variance ``gamma^2``.

    Args:
        graph: Of the network.
        state: Of the ANN, before its batch normalisation is folded.
    """
    norms = {node.name: node.norm for node in graph.affines if node.norm is not None}
    return {name: (state[f"{norm}.bias"], state[f"{norm}.weight"].square()) for name, norm in norms.items()}


def synthesise(
    graph: SpikingGraph,
    parameters: Parameters,
    labels: Tensor,
    shape: tuple[int, ...],
    bounds: Bounds,
    config: SynthesisConfig,
    generator: torch.Generator,
    *,
    statistics: Statistics | None = None,
    report: Callable[[int], None] = lambda iteration: None,
) -> Tensor:
    """Make an image for each soft label: pixels that minimise the cross-entropy of what the network says of them.

    All images are one optimisation, ``Adam`` on the sum of their losses: Adam moves each pixel by itself, so each image
    is what it would be alone, but for rounding, unless ``statistics`` compare the batch as a whole. Pixels begin
    uniformly between the bounds and are kept there: the authors' code doesn't keep them, but no picture lies outside,
    and Poisson coding would cut it off.

    Args:
        graph: Structure of the ANN.
        parameters: Its weights and biases, batch normalisation folded into them.
        labels: Shape ``[N, classes]``.
        shape: Of an image.
        bounds: Of the pixels.
        config: Iterations, rate, temperature, blur.
        generator: Draws the start, on the CPU.
        statistics: Of batch normalisation; needed if ``config.statistics`` is positive.
        report: Told the number of each iteration that is done.

    Returns:
        Shape ``[N, *shape]``, of the parameters' type and on their device.

    Raises:
        ConversionError: If statistics are to be matched, and the network has none.
    """
    if config.statistics and not statistics:
        raise ConversionError(
            "synthesis.statistics: the network has no batch normalisation whose statistics are known; set it to 0"
        )
    like = next(iter(parameters.values()))
    low, high = bounds.low.to(like), bounds.high.to(like)
    start = torch.rand((len(labels), *shape), generator=generator).to(like)
    images = in_fast_layout(start * (high - low) + low).requires_grad_()
    frozen = {name: array.detach() for name, array in parameters.items()}
    state, targets = AdamState.of([images]), labels.to(like)
    for iteration in range(1, config.iterations + 1):
        loss = _loss(graph, frozen, images, targets, config, statistics or {})
        adam_step([images], torch.autograd.grad(loss, images), state, config.rate)
        with torch.no_grad():
            if config.blur and iteration % config.blur == 0:
                images.copy_(blurred(images))
            images.copy_(torch.minimum(torch.maximum(images, low), high))
        report(iteration)
    return images.detach()


CLIENT_ITERATIONS = 100
"""Of images that calibrate a client's conversion, unless its configuration says otherwise."""


def client_images(
    graph: SpikingGraph, state: Parameters, dataset: Normalised, config: ConversionConfig, generator: torch.Generator
) -> Tensor:
    """Make the images that calibrate an S-client's conversion, in the place of its private ones.

    Args:
        graph: Of the network.
        state: The ANN that the client has just trained; nothing else decides the images.
        dataset: For the shape of an image and the bounds of its pixels.
        config: How many, and of how many iterations.
        generator: Draws labels and starts, on the CPU.

    Returns:
        Shape ``[config.calibration_images, *input_shape]``, normalised as in training.

    Raises:
        ConversionError: If the network doesn't end with a linear layer.
    """
    parameters = fold(graph, state)
    how = SynthesisConfig(images=config.calibration_images, iterations=config.synthesis_iterations or CLIENT_ITERATIONS)
    labels = soft_labels(
        class_similarity(last_weight(graph, parameters), how.similarity), how.images, generator, floor=how.floor
    )
    return synthesise(graph, parameters, labels, dataset.input_shape, bounds_of(dataset), how, generator)


def blurred(images: Tensor) -> Tensor:
    """Blur pictures ``[N, C, H, W]`` by the kernel ``[1, 2, 1] / 4`` in either direction; borders are repeated."""
    row = images.new_tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row).expand(images.shape[1], 1, 3, 3)
    return functional.conv2d(functional.pad(images, (1, 1, 1, 1), "replicate"), kernel, groups=images.shape[1])


def _loss(
    graph: SpikingGraph,
    parameters: Parameters,
    images: Tensor,
    labels: Tensor,
    config: SynthesisConfig,
    statistics: Statistics,
) -> Tensor:
    """Sum the images' losses; the distance of statistics is a mean over channels, times the images."""
    values, distance = {graph.input: images}, images.new_zeros(())
    for node in graph.nodes:
        value = values[node.name] = analog_value(node, values, parameters)
        if config.statistics and node.name in statistics:
            mean, variance = statistics[node.name]
            scale = variance.clamp_min(1e-6)
            others = [dim for dim in range(value.dim()) if dim != 1]
            shift = (value.mean(others) - mean).square() / scale
            distance = distance + (shift + (value.var(others, correction=0) / scale - 1).square()).mean()
        for name in graph.freed_after[node.name]:
            del values[name]
    logits = values[graph.output]
    loss = functional.cross_entropy(logits / config.temperature, labels, reduction="sum")
    return loss + config.statistics * len(images) * distance
