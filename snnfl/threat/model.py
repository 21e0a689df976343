"""What someone has who holds a published network: facts, and a view that holds what they grant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from snnfl.private_snn import PublishedNetwork
from snnfl.private_snn.conversion import affine_parameters
from snnfl.registry import Registry
from snnfl.spiking.graph import SpikingGraph
from snnfl.threat.granting import Granting
from snnfl.threat.knowledge import ThreatModelError
from snnfl.threat.view import PublicImages

MODEL_FACTS = Registry[str]("fact", closed=True)
"""What a threat model of a published network grants or denies, with its meaning."""


def _fact(name: str, meaning: str) -> None:
    MODEL_FACTS.add(name, meaning, home=__name__)


_fact("architecture", "the network's layers, without their values")
_fact("weights", "weights and biases of its layers")
_fact("thresholds", "firing thresholds of its neurons")
_fact("dynamics", "how it runs: leak, reset, coding of images, time steps and what is read out")
_fact("norm_statistics", "mean and variance of what layers give, as batch normalisation that isn't folded tells them")
_fact("logits", "what it answers to any image that is asked, as logits")
_fact("labels", "what it answers to any image that is asked, as the likeliest class")
_fact("public_images", "images of the same kind that the owner doesn't have")
_fact("synthetic_images", "the images that the owner made to convert and train it")


class Ask(Protocol):
    """What a network answers to images ``[N, *input_shape]``."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return logits ``[N, classes]``, or likeliest classes ``[N]``."""


@dataclass(frozen=True, kw_only=True)
class ModelKnowledge(Granting):
    """The threat model: which of :data:`MODEL_FACTS` the attacker has. All, unless somebody says otherwise.

    Whoever has a device with the network on it can read its memory and run it: that is all but the two kinds of images.
    """

    architecture: bool = True
    weights: bool = True
    thresholds: bool = True
    dynamics: bool = True
    norm_statistics: bool = True
    logits: bool = True
    labels: bool = True
    public_images: bool = True
    synthetic_images: bool = True

    table = MODEL_FACTS


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelView:
    """All that an attacker has who holds a published network.

    What the threat model denies isn't here, and no image that the network was trained on ever is.

    Attributes:
        input_shape: Of one image.
        classes: Number of them.
        mean: Of the public normalisation ``x = (pixel - mean) / std`` with pixels in [0, 1]: one value per channel.
        std: As ``mean``.
        knowledge: The threat model.
        graph: The structure; under ``architecture``.
        shapes: Of weights and biases by name; under ``architecture``.
        weights: Weights and biases by name; under ``architecture`` and ``weights``.
        thresholds: By layer of neurons, ``[1]`` or ``[C]``; empty for an ANN. Under ``thresholds``.
        network: The network itself; ``None`` for an ANN, which a control publishes. Under ``architecture``,
            ``weights``, ``thresholds`` and ``dynamics`` together, since it has all of them.
        statistics: Mean and variance ``[C]`` of what a layer gives, by its name; under ``norm_statistics``.
        logits: Asks the network; under ``logits``.
        labels: Asks the network; under ``labels``.
        public: Under ``public_images``; attacks learn from what the network says of them, not from their labels.
        synthetic: The owner's, ``[M, *input_shape]``; under ``synthetic_images``.
    """

    input_shape: tuple[int, ...]
    classes: int
    mean: Tensor
    std: Tensor
    knowledge: ModelKnowledge
    graph: SpikingGraph | None = None
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)
    weights: Mapping[str, Tensor] | None = None
    thresholds: Mapping[str, Tensor] = field(default_factory=dict)
    network: PublishedNetwork | None = None
    statistics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    logits: Ask | None = None
    labels: Ask | None = None
    public: PublicImages | None = None
    synthetic: Tensor | None = None

    def __post_init__(self) -> None:
        """Leave out what the threat model denies.

        Raises:
            ThreatModelError: If images have another shape than the network takes.
        """
        images = None if self.public is None else self.public.inputs
        for name, inputs in (("public", images), ("synthetic", self.synthetic)):
            if inputs is not None and (shape := tuple(inputs.shape[1:])) != self.input_shape:
                raise ThreatModelError(f"{name} images are {list(shape)}, the network takes {list(self.input_shape)}")
        for name, facts in _HOLDS.items():
            if not self.knowledge.facts.issuperset(facts):
                object.__setattr__(self, name, {} if name in ("shapes", "thresholds", "statistics") else None)

    def only(self, needs: Iterable[str]) -> ModelView:
        """Return the view of an attacker who knows nothing else than these facts, as far as they are granted."""
        return replace(self, knowledge=self.knowledge.without(self.knowledge.facts - set(needs)))

    def pixels(self, inputs: Tensor) -> Tensor:
        """Turn normalised images ``[..., *input_shape]`` into pixels, clipped to [0, 1]."""
        return (inputs * self._per_channel(self.std) + self._per_channel(self.mean)).clamp(0, 1)

    def inputs(self, pixels: Tensor) -> Tensor:
        """Normalise pixels ``[..., *input_shape]``."""
        return (pixels - self._per_channel(self.mean)) / self._per_channel(self.std)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.view(-1, *[1] * (len(self.input_shape) - 1))


_HOLDS = {
    "graph": ("architecture",),
    "shapes": ("architecture",),
    "weights": ("architecture", "weights"),
    "thresholds": ("thresholds",),
    "network": ("architecture", "weights", "thresholds", "dynamics"),
    "statistics": ("norm_statistics",),
    "logits": ("logits",),
    "labels": ("labels",),
    "public": ("public_images",),
    "synthetic": ("synthetic_images",),
}
"""The facts that each part of a view is held under."""


def parts_of(graph: SpikingGraph, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what whoever sees a network's parameters holds: structure, shapes, weights and thresholds of a view."""
    weights = affine_parameters(graph, parameters)
    levels = {node.name: parameters.get(f"{node.name}.threshold") for node in graph.spikes}
    return {
        "graph": graph,
        "shapes": {name: array.shape for name, array in weights.items()},
        "weights": weights,
        "thresholds": {name: level for name, level in levels.items() if level is not None},
    }
