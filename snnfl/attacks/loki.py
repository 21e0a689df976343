"""Beyond honest-but-curious: weights of its own for each client, so that a sum still tells them apart (LOKI)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnfl.attacks.imprint import apart, equal_columns, read_apart, sorting
from snnfl.attacks.networks import Arrays
from snnfl.attacks.problem import problem_of
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.threat import ServerView, ThreatModelError

SCALE = 1e-2
"""Of the convolution's kernels: what the linear layer's change adds to what it measures shrinks with its square."""

SLOPE = 1e-4
"""Of both linear layers: how far kernels move in a step goes with its square."""


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers that are crafted.

    Attributes:
        convolution: Name of the first.
        first: Of the linear layer behind it.
        second: Of the linear layer behind that.
        channels: Of the image.
        maps: That a client needs: one for each channel, their mean, and one that is constant.
        clients: Of how many the maps are enough.
        size: Pixels of a map.
    """

    convolution: str
    first: str
    second: str
    channels: int
    maps: int
    clients: int
    size: int


def loki_weights(
    model: nn.Module, state: Mapping[str, Tensor], public: Tensor, seed: int, *, client: int, scale: float = SCALE
) -> Arrays:
    """Return the state that one client of a sum is sent: its images go through maps that are zero for all others.

    Each client has ``C + 2`` of the convolution's maps. Of its own, the first ``C`` are the image's channels, raised
    above zero, so that ReLU lets them pass; then comes their mean, and a constant; all of them times ``scale``. The
    first linear layer measures the means alone and sorts by them (:func:`~snnfl.attacks.imprint.sorting`); it is the
    same for all clients, and so is the second, whose columns are equal. The gradient of a weight between a client's map
    and a bin is that client's alone, for the others' map is zero there: in a sum each client stands in columns of its
    own (Zhao et al., "LOKI", IEEE S&P 2024).

    Over several steps of rate ``r`` on ``B`` images the layers move, and bins with them: by the change of the first
    linear layer as ``r scale^2 / B`` an image, by that of the kernels as ``r SLOPE^2 / scale^2``, by that of the biases
    as ``r / B``, which neighbouring bins share; and neighbouring bins' slopes part as ``r``. At a rate of 0.1 all of it
    is small against a bin (benchmarks/imprint.py), and without ``scale`` the first isn't. Columns that are read start
    at zero, so that float32 keeps their changes however small they are.

    A public demonstration of the attack, not known to be the authors', differs: it reads the columns that also measure,
    brings each image to the range of pixels, since biases are summed over clients, clamps units to one bin each, and
    has kernels of 500 at a rate of 1e-4. Here units are a model's own ReLUs, and the change of the constant map's
    columns is each client's own bias gradient, which gives images without a guess.

    Args:
        model: Begins with :func:`layers_of`.
        state: Its arrays.
        public: Normalised images of anybody, ``[M, C, H, W]``.
        seed: Draws the second layer's values.
        client: Which maps are the client's, counted from 0; beyond :attr:`Layers.clients` it has none.
        scale: Of the kernels.

    Raises:
        ThreatModelError: If the model has no such layers.
    """
    layers = layers_of(model, tuple(public.shape[1:]))
    channels = mean = layers.channels
    kernels, offsets = (torch.zeros_like(state[f"{layers.convolution}.{kind}"]) for kind in ("weight", "bias"))
    raised = -public.amin((0, 2, 3))
    if client < layers.clients:
        own = slice(client * layers.maps, (client + 1) * layers.maps)
        centre = kernels[own, :, kernels.shape[2] // 2, kernels.shape[3] // 2]
        centre[:channels] = scale * torch.eye(channels)
        centre[mean] = scale / channels
        offsets[own] = scale * torch.cat([raised, raised.mean()[None], torch.ones(1)])
    units = len(state[f"{layers.first}.bias"])
    slope, biases = sorting(public.flatten(1).mean(1) + raised.mean(), units)
    rows = torch.zeros(units, len(kernels), layers.size)
    rows[:, mean : layers.clients * layers.maps : layers.maps] = slope / (scale * layers.size)
    return {
        **state,
        f"{layers.convolution}.weight": kernels,
        f"{layers.convolution}.bias": offsets,
        f"{layers.first}.weight": SLOPE * rows.flatten(1),
        f"{layers.first}.bias": SLOPE * biases,
        f"{layers.second}.weight": SLOPE * equal_columns(state[f"{layers.second}.weight"], seed),
    }


def layers_of(model: nn.Module, input_shape: tuple[int, ...]) -> Layers:
    """Return the layers that can be crafted: a convolution that keeps the image's size, then two linear ones.

    Args:
        model: Any.
        input_shape: ``[C, H, W]``.

    Raises:
        ThreatModelError: If the model doesn't begin with them, or has too few maps for one client.
    """
    leaves = [(name, module) for name, module in model.named_modules() if not [*module.children()]]
    found = [(name, module) for name, module in leaves if not isinstance(module, nn.ReLU | nn.Flatten)][:3]
    kinds = [type(module) for _, module in found]
    if kinds != [nn.Conv2d, nn.Linear, nn.Linear] or len(input_shape) != 3:
        raise ThreatModelError("LOKI needs a convolution, then two linear layers, with nothing between them but ReLU")
    (convolution, kernel), (first, linear), (second, _) = found
    channels, height, width = input_shape
    maps, size, made = channels + 2, height * width, kernel.weight.shape
    centred = kernel.padding == (made[2] // 2, made[3] // 2) and kernel.stride == kernel.dilation == (1, 1)
    whole = made[1] == channels and linear.in_features == made[0] * size
    if not (centred and whole and kernel.bias is not None and linear.bias is not None):
        raise ThreatModelError("LOKI needs a convolution with biases that keeps each pixel where it is, in each map")
    if made[0] < maps:
        raise ThreatModelError(f"LOKI needs {maps} maps a client for {channels} channels, and the model has {made[0]}")
    return Layers(
        convolution=convolution,
        first=first,
        second=second,
        channels=channels,
        maps=maps,
        clients=made[0] // maps,
        size=size,
    )


def _unready(view: ServerView) -> str | None:
    try:
        layers_of(view.model, view.input_shape)
    except ThreatModelError as error:
        return str(error)
    return None


@register(
    "loki",
    source="Zhao et al. 2024, LOKI",
    needs=("architecture", "loss", "images", "batch_size", "epochs", "biases", "crafted_weights"),
    against="plain",
    requires=_unready,
)
def loki(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Read each client's images off columns of its own, in sums of clients and of steps, too.

    ``x = (dW_i - dW_{i+1}) / (dc_i - dc_{i+1})`` less what raised it, with ``dW_i`` the changes of a bin's weights to a
    client's own maps, and ``dc_i`` that to its constant one; exact for an image that is alone in its bin.
    """
    return [_read(view, generator) for view in views]


def _read(view: ServerView, generator: torch.Generator) -> Reconstruction:
    problem, layers = problem_of(view), layers_of(view.model, view.input_shape)
    changes = problem.gradient(f"{layers.first}.weight")[:, : layers.clients * layers.maps * layers.size]
    own = changes.reshape(len(changes), layers.clients, layers.maps, layers.size).transpose(0, 1)
    weight, constant = own[:, :, : layers.channels].flatten(2), own[:, :, -1].double().mean(2)
    found = apart(weight, constant, problem.count).view(-1, layers.channels, layers.size)
    offsets = problem.arrays[f"{layers.convolution}.bias"][: layers.maps]  # of the client whose maps come first
    raised = offsets[: layers.channels] / offsets[-1]
    images = found - raised[:, None]
    return read_apart(view, problem, images.flatten(1), generator)
