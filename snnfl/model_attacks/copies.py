"""Ordinary networks from a published one: copied, clipped at its thresholds, or like its neurons' mean rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.model_attacks.registry import ModelAttackError
from snnfl.neurons import broadcast
from snnfl.spiking.graph import Spike, SpikingGraph
from snnfl.threat import ModelView


class Copy(nn.Module):
    """An ordinary network of a published one's structure, whose weights can be trained.

    Args:
        graph: The structure.
        parameters: Weights and biases of its affine layers, by name; they are copied.
        activations: What stands in the place of neurons, by their layer; ReLU elsewhere.
    """

    def __init__(
        self, graph: SpikingGraph, parameters: Mapping[str, Tensor], activations: Mapping[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.graph = graph
        self._names = {name: name.replace(".", "/") for name in parameters}  # PyTorch takes no dots
        for name, own in self._names.items():
            self.register_parameter(own, nn.Parameter(parameters[name].detach().clone()))
        self._layers = {name: f"activation/{name.replace('.', '/')}" for name in activations or {}}
        for name, activation in (activations or {}).items():
            self.add_module(self._layers[name], activation)

    @property
    def parameters_by_name(self) -> dict[str, Tensor]:
        """Weights and biases under the published network's names."""
        return {name: self.get_parameter(own) for name, own in self._names.items()}

    def values(self, images: Tensor) -> dict[str, Tensor]:
        """Return every value of the network for images ``[N, *input_shape]``, by node."""
        found, parameters = {self.graph.input: images}, self.parameters_by_name
        for node in self.graph.nodes:
            read = [found[name] for name in node.inputs]
            if not isinstance(node, Spike):
                found[node.name] = node.apply(read, parameters)
            elif node.name in self._layers:
                found[node.name] = self.get_submodule(self._layers[node.name])(*read)
            else:
                found[node.name] = replace(node, levels=None).analog(read[0], parameters)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[N, *input_shape]`` to logits ``[N, classes]``."""
        return self.values(images)[self.graph.output]


class Scaled(nn.Module):
    """``relu(z) * scale``, in the place of neurons.

    Args:
        scale: Positive, ``[1]`` or ``[C]``.
    """

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().clone())

    def forward(self, current: Tensor) -> Tensor:
        """Map ``[N, C, *space]`` to the same shape."""
        return functional.relu(current) * broadcast(self.get_buffer("scale"), current.shape)


class MeanSpikes(nn.Module):
    """What a leaky neuron gives in the mean over many steps, by its mean current.

    The mean of ``v(t) = leak v(t-1) + I(t) - V_th s(t)`` is ``(1 - leak) m = I - V_th r``, where ``m`` is the mean
    potential, about half a threshold in a neuron that fires now and then. A spike is worth ``V_th``, so the mean is
    ``V_th r = clip(I - (1 - leak) V_th / 2, 0, V_th)``. Without a leak and with a constant current that is exact up to
    one spike in ``T`` steps.

    Args:
        threshold: ``[1]`` or ``[C]``.
        leak: Part of the potential that is left after a step, ``[1]`` or ``[C]``; ``None``: all.
    """

    def __init__(self, threshold: Tensor, leak: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold.detach().clone())
        self.register_buffer("leak", torch.ones(1) if leak is None else leak.detach().clone())

    def forward(self, current: Tensor) -> Tensor:
        """Map mean currents ``[N, C, *space]`` to mean outputs between zero and the threshold."""
        threshold, leak = (broadcast(self.get_buffer(name), current.shape) for name in ("threshold", "leak"))
        lifted = current - (1 - leak) * threshold / 2
        return functional.relu(lifted) - functional.relu(lifted - threshold)


def structure_of(view: ModelView) -> SpikingGraph:
    """Return the structure, of an attack that needs ``architecture``.

    Raises:
        ModelAttackError: If it isn't there.
    """
    if view.graph is None:
        raise ModelAttackError("needs architecture")
    return view.graph


def drawn(view: ModelView, generator: torch.Generator) -> Copy:
    """Return an ordinary network of the view's structure with weights of its own.

    They are ``U(-b, b)`` with ``b = sqrt(6 / fan_in)`` (He et al. 2015), biases zero.
    """
    parameters = dict[str, Tensor]()
    for name, shape in sorted(view.shapes.items()):
        bound = math.sqrt(6 / max(1, math.prod(shape[1:]))) if name.endswith(".weight") else 0.0
        parameters[name] = (2 * torch.rand(shape, generator=generator) - 1) * bound
    return Copy(structure_of(view), parameters)


def copied(view: ModelView, activations: Mapping[str, nn.Module] | None = None) -> Copy:
    """Return an ordinary network with the published weights.

    Raises:
        ModelAttackError: If they aren't there.
    """
    if view.weights is None:
        raise ModelAttackError("needs weights")
    return Copy(structure_of(view), view.weights, activations)


def clipped(view: ModelView) -> Copy:
    """Return the copied network with each ReLU clipped at its neurons' threshold: they fire once a step at most."""
    return copied(view, {name: MeanSpikes(level) for name, level in view.thresholds.items()})


def mean_spikes(view: ModelView) -> Copy:
    """Return the copied network with :class:`MeanSpikes` in the place of its neurons.

    Raises:
        ModelAttackError: If the network isn't there.
    """
    if view.network is None:
        raise ModelAttackError("needs neurons that fire")
    parameters = view.network.parameters
    return copied(
        view, {name: MeanSpikes(level, parameters[f"{name}.leak"]) for name, level in view.thresholds.items()}
    )


FACTORS = tuple(2.0**power for power in (-6, -4, -3, -2, -1, -0.5, 0.5, 1, 2, 3, 4, 6))
"""By which a layer's scale is multiplied in turn."""


def search_scales(layers: Sequence[Scaled], score: Callable[[], float], *, rounds: int = 2) -> float:
    """Choose a scale for each layer by coordinate ascent, in place.

    Where weights were scaled layer by layer, biases no longer fit them, and a few products of layer-wise factors are
    all there is to try (Kim et al. 2022, "Class Leakage from Reconverting SNNs to ANNs").

    Args:
        layers: Of one network.
        score: Of the network as it is; the larger the better.
        rounds: Over all layers.

    Returns:
        The best score.
    """
    best = score()
    for _ in range(rounds):
        for layer in layers:
            scale = layer.get_buffer("scale")
            before = chosen = scale.clone()
            for factor in FACTORS:
                scale.copy_(before * factor)
                if (found := score()) > best:
                    best, chosen = found, scale.clone()
            scale.copy_(chosen)
    return best
