"""The order in time of frames that are known up to it, from what each one weighs in the gradient."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.attacks.events import Frames
from snnfl.models import SpikingModel, SpikingNeurons
from snnfl.threat import ThreatModelError
from snnfl.training import exchangeable


class Replay:
    """A natively spiking network behind its first layer: from that layer's outputs to the gradient by them.

    Args:
        model: On any device, without values.
        arrays: Its exchanged arrays.
        layer: Name of the first layer.
        norm: Name of the batch normalisation behind it, which counts as a part of it.
        batch_statistics: Whether batch normalisation has the statistics of what it is given: that behind the first
            layer of a batch (:meth:`normalise`), the others of the currents. Without, the running ones that were sent.

    Raises:
        ThreatModelError: If an array is missing.
    """

    def __init__(
        self,
        model: SpikingModel,
        arrays: Mapping[str, Tensor],
        layer: str,
        norm: str | None = None,
        *,
        batch_statistics: bool = False,
    ) -> None:
        self.model = copy.deepcopy(model).to_empty(device="cpu").eval()
        if batch_statistics:
            torch.func.replace_all_batch_norm_modules_(self.model)
        for module in self.model.modules():
            if isinstance(module, SpikingNeurons) and not module.learns_threshold:
                module.threshold.fill_(module.level)
        if missing := sorted(exchangeable(self.model).keys() - arrays.keys()):
            raise ThreatModelError(f"needs {missing[0]}, which the attacker hasn't")
        self.model.load_state_dict(dict(arrays), strict=False)
        self.model.requires_grad_(False)
        self.layer: nn.Module = self.model.get_submodule(layer if norm is None else norm)
        self.weight, self.bias = arrays[f"{layer}.weight"], arrays.get(f"{layer}.bias")
        self.norm = self.layer if isinstance(self.layer, nn.BatchNorm1d) else None
        self.mean, self.deviation = torch.zeros(1), torch.ones(1)
        if self.norm is not None and self.norm.running_mean is not None and self.norm.running_var is not None:
            self.mean, self.deviation = self.norm.running_mean, self._deviation(self.norm.running_var)

    def normalise(self, frames: Tensor, total: int) -> None:
        """Let batch normalisation have the statistics of a batch.

        Args:
            frames: Those that are known of it, ``[F, inputs]``.
            total: Number of all; the others are taken as empty.
        """
        batch = self._outputs(torch.cat([frames, frames.new_zeros(max(0, total - len(frames)), frames.shape[1])]))
        self.mean, self.deviation = batch.mean(0), self._deviation(batch.var(0, correction=0))

    def behind_norm(self, frames: Frames, gradients: Mapping[str, Tensor], share: float) -> Frames:
        """Return frames whose coefficients are gradients by the normalised outputs, ``g``, instead of the layer's.

        ``d_f = gamma/sigma (g_f - m - z_f s)``, where ``z_f`` is normalised, ``m`` the mean of ``g`` and ``s`` that of
        ``g z`` over the batch and time. The gradients of beta and gamma are sums of the same.

        Args:
            frames: With the gradients by the layer's outputs.
            gradients: Of ``weight`` and ``bias`` of the normalisation.
            share: Of one frame in the batch's mean, or 0 for running statistics, which don't depend on the batch.
        """
        if self.norm is None:
            return frames
        normalised = (self._outputs(frames.frames) - self.mean) / self.deviation
        means = share * (gradients["bias"] + gradients["weight"] * normalised)
        scale = self.deviation / torch.where(self.norm.weight == 0, torch.inf, self.norm.weight)
        return replace(frames, coefficients=frames.coefficients * scale[:, None] + means.T)

    def _deviation(self, variance: Tensor) -> Tensor:
        return (variance + (0.0 if self.norm is None else self.norm.eps)).sqrt()

    def _outputs(self, frames: Tensor) -> Tensor:
        return functional.linear(frames.float(), self.weight, self.bias)

    def currents(self, frames: Tensor) -> Tensor:
        """Return what the first layer, and the normalisation behind it, make of frames ``[..., inputs]``."""
        outputs = self._outputs(frames)
        if self.norm is None:
            return outputs
        return (outputs - self.mean) / self.deviation * self.norm.weight + self.norm.bias

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
            currents: Outputs of the first layer, ``[T, N, outputs]``; of linear readouts any will do.
            bias: Name of the last layer's bias.
            gradient: Of it, ``[classes]``.
        """
        array = self.model.get_parameter(bias).requires_grad_()
        (weights,) = torch.autograd.grad(self.logits(currents.detach()).mean(0).sum(), array)
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
