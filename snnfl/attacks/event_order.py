"""The order in time of frames that are known up to it, from what each one weighs in the gradient."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.models import SpikingModel, SpikingNeurons


class Replay:
    """A natively spiking network behind its first layer: from that layer's outputs to the gradient by them.

    Args:
        model: On any device, without values.
        arrays: Its exchanged arrays.
        layer: Name of the first layer.
    """

    def __init__(self, model: SpikingModel, arrays: Mapping[str, Tensor], layer: str) -> None:
        self.model = copy.deepcopy(model).to_empty(device="cpu").eval()
        for module in self.model.modules():
            if isinstance(module, SpikingNeurons) and not module.learns_threshold:
                module.threshold.fill_(module.level)
        self.model.load_state_dict(dict(arrays), strict=False)
        self.model.requires_grad_(False)
        self.layer: nn.Module = self.model.get_submodule(layer)
        self.weight, self.bias = arrays[f"{layer}.weight"], arrays.get(f"{layer}.bias")

    def currents(self, frames: Tensor) -> Tensor:
        """Return what the first layer makes of frames ``[..., inputs]``."""
        return functional.linear(frames.float(), self.weight, self.bias)

    def gradients(self, currents: Tensor, slopes: Tensor) -> Tensor:
        """Return the gradient of each sample's loss by the first layer's outputs, ``[T, N, outputs]``.

        Args:
            currents: Outputs of the first layer, ``[T, N, outputs]``.
            slopes: Gradient of the loss by the logits, ``[N, classes]``.
        """
        given = currents.detach().requires_grad_()
        (found,) = torch.autograd.grad((self.logits(given) * slopes).sum(), given)
        return found

    def logits(self, currents: Tensor) -> Tensor:
        """Return what the network reads out of outputs of its first layer ``[T, N, outputs]``, ``[N, classes]``."""
        self.layer.forward = lambda inputs: currents
        samples = torch.zeros(1, *self.model.input_shape).expand(currents.shape[1], *self.model.input_shape)
        found: Tensor = self.model(samples)
        return found

    def slope(self, currents: Tensor, bias: str, gradient: Tensor) -> Tensor:
        """Return the gradient of the loss by the logits, ``[classes]``, that a last layer's bias gradient tells.

        Args:
            currents: Outputs of the first layer for one sample, ``[T, 1, outputs]``; of linear readouts any will do.
            bias: Name of the last layer's bias.
            gradient: Of it, ``[classes]``.
        """
        array = self.model.get_parameter(bias).requires_grad_()
        (weights,) = torch.autograd.grad(self.logits(currents.detach()).sum(), array)
        array.requires_grad_(False)
        return gradient / torch.where(weights == 0, torch.inf, weights)


def in_order(
    replay: Replay, frames: Tensor, coefficients: Tensor, slopes: Tensor, leak: float, steps: int
) -> tuple[Tensor, int, float]:
    """Return the order of a sample's frames, and which slope it has, from the network's own gradient.

    With leaky neurons in the first layer whose reset carries no gradient, ``d_t = e_t + leak d_(t+1)``, where ``e_t``
    depends on the frames up to ``t`` alone (and on the slopes). So once the first frame is guessed, replaying the
    network tells ``e_t``, and the next frame is the one whose coefficient is ``(d_t - e_t) / leak``. Every frame is
    tried as the first one; the order counts whose replayed gradient is nearest to the observed one.

    Args:
        replay: Of the network.
        frames: Shape ``[F, inputs]``, at least one.
        coefficients: Gradient by the first layer's output at each frame, ``[outputs, F]``.
        slopes: Gradients by the logits that the sample may have, ``[candidates, classes]``.
        leak: Of the first layer's neurons.
        steps: Time steps of a sample, at least ``F``; those that no frame is known of are taken as empty, and last.

    Returns:
        Indices of the frames in time, the index of the slope, and the relative distance of the gradients, 0 for none.
    """
    number = len(frames)
    observed, currents = coefficients.T.float(), replay.currents(frames)
    silent = replay.currents(frames.new_zeros(steps, 1, frames.shape[1]))
    starts = torch.arange(number).repeat(len(slopes))
    which = torch.arange(len(slopes)).repeat_interleave(number)
    order, used = starts[:, None], functional.one_hot(starts, number).bool()
    while True:
        placed = order.shape[1]
        inputs = silent.repeat(1, len(starts), 1)
        inputs[:placed] = currents[order].movedim(1, 0)
        gradients = replay.gradients(inputs, slopes[which])
        if placed == number:
            break
        own = gradients[placed - 1] - leak * gradients[placed]
        distances = torch.cdist(observed[order[:, -1]] - own, leak * observed).masked_fill(used, torch.inf)
        following = distances.argmin(1)
        order = torch.cat([order, following[:, None]], 1)
        used[torch.arange(len(starts)), following] = True
    misses = (gradients[:number] - observed[order].movedim(1, 0)).square().sum((0, 2)).sqrt()
    best = int(misses.argmin())
    size = float(torch.linalg.matrix_norm(observed))
    return order[best], int(which[best]), float(misses[best]) / size if size else 1.0


def smooth_order(frames: Tensor, coefficients: Tensor) -> Tensor:
    """Return an order in which neighbours resemble each other, for a gradient that nothing can be replayed of.

    The second eigenvector of the Laplacian of the frames' cosine similarities sorts them (Atkins et al. 1998, spectral
    seriation). Which end is first, the coefficients tell: earlier frames weigh more, for they act longer.

    Args:
        frames: Shape ``[F, inputs]``.
        coefficients: Shape ``[outputs, F]``.
    """
    weights: Tensor = torch.linalg.vector_norm(coefficients, dim=0)
    if len(frames) < 3:
        return weights.argsort(descending=True)
    unit = frames / torch.linalg.vector_norm(frames, dim=1, keepdim=True).clamp_min(1e-300)
    alike = unit @ unit.T
    _, vectors = torch.linalg.eigh(torch.diag(alike.sum(1)) - alike)
    order: Tensor = vectors[:, 1].argsort()
    half = len(order) // 2
    early = weights[order[:half]].sum() >= weights[order[-half:]].sum()
    return order if early else order.flip(0)
