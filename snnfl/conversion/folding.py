"""Batch normalisation folded into the layer before it, and taken out again by the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from snnfl.quantisation import SMALLEST_THRESHOLD
from snnfl.spiking.graph import Affine, SpikingGraph


class UnrecoverableError(ValueError):
    """A folded weight whose batch normalisation scale is too near zero to be divided out."""


@dataclass(frozen=True, kw_only=True)
class BatchNormState:
    """Evaluation-mode batch normalisation: ``gamma``, ``beta``, ``mean``, ``var``, each ``[out]``, and ``eps``."""

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor
    eps: float

    @property
    def scale(self) -> Tensor:
        """``gamma / sigma`` with ``sigma = sqrt(var + eps)``."""
        return self.gamma / torch.sqrt(self.var + self.eps)


NORM_FIELDS = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}
"""Name in an update and name in the module's state, of the four arrays of a batch normalisation."""


def fold_batch_norm(weight: Tensor, bias: Tensor | None, norm: BatchNormState) -> tuple[Tensor, Tensor]:
    """Absorb an evaluation-mode batch normalisation into the affine layer before it.

    ``W_S = W_A * gamma/sigma`` and ``b_S = beta + (b_A - mean) * gamma/sigma`` (Rueckauer et al. 2017, eq. 7;
    SNFL section 4.2).

    Args:
        weight: Shape ``[out, in, *kernel]``.
        bias: Shape ``[out]``, or ``None`` for zero.
        norm: Statistics and affine parameters.

    Returns:
        Folded weight and bias, of the shapes of ``weight`` and ``[out]``.

    Raises:
        ValueError: If the channel counts differ.
    """
    if len(norm.mean) != len(weight):
        raise ValueError(f"batch norm has {len(norm.mean)} channels, the layer before it {len(weight)}")
    shift = norm.mean if bias is None else norm.mean - bias
    return weight * _columns(norm.scale, weight), norm.beta - shift * norm.scale


def recover_weight(
    folded: Tensor, norm: BatchNormState, *, minimum_scale: float = 1e-6, fallback: Tensor | None = None
) -> Tensor:
    """Undo the folding of a weight: ``W_A = W_S * sigma/gamma`` (SNFL section 4.2, "Server Aggregation").

    Negative gamma needs no care. Where ``|gamma/sigma| <= minimum_scale`` the folded weight has lost the ANN's: such
    output channels take ``fallback``'s values (the server uses what it sent), for they hardly act on the network.

    Args:
        folded: ``W_S``, shape ``[out, in, *kernel]``.
        norm: The batch normalisation that was folded.
        minimum_scale: Bound on ``|gamma/sigma|``, above 0.
        fallback: ``W_A`` of dead channels, of the shape of ``folded``.

    Returns:
        ``W_A``.

    Raises:
        UnrecoverableError: If a channel is dead and there is no fallback.
    """
    scale = norm.scale
    dead = scale.abs() <= minimum_scale
    if dead.any() and fallback is None:
        channel = int(dead.nonzero()[0])
        raise UnrecoverableError(
            f"channel {channel} has |gamma/sigma| = {float(scale[channel].abs()):.3g} <= {minimum_scale:g}: its weight "
            "cannot be recovered from the folded one; give a fallback"
        )
    weight = folded / _columns(torch.where(dead, torch.ones_like(scale), scale), folded)
    return weight if fallback is None else torch.where(_columns(dead, folded), fallback, weight)


def recover_bias(folded: Tensor, norm: BatchNormState, *, minimum_scale: float = 1e-6) -> Tensor:
    """Undo the folding of a bias: ``b_A = (b_S - beta) * sigma/gamma + mean``; zero where the channel is dead.

    After calibration this is the curious server's estimate (SNFL section 5.3), not the ANN's bias.
    """
    dead = norm.scale.abs() <= minimum_scale
    bias = (folded - norm.beta) / torch.where(dead, torch.ones_like(norm.scale), norm.scale) + norm.mean
    return torch.where(dead, torch.zeros_like(bias), bias)


def fold(graph: SpikingGraph, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold an ANN's state into ``<layer>.weight`` and ``<layer>.bias`` of every affine layer, as new tensors.

    Thresholds that the ANN has learned are among them, as it computes with them. Weights have their output channels
    first, those of transposed convolutions too, unlike in the ANN.

    Raises:
        ValueError: If the state lacks the weight of a layer.
    """
    parameters = {}
    for node in graph.affines:
        if node.op == "scale" and node.norm is not None:  # there is no layer but the batch normalisation
            weight, bias = torch.ones_like(_array(state, node.norm, "running_var")), None
        else:
            weight = node.outputs_first(_array(state, node.name, "weight"))
            bias = state.get(f"{node.name}.bias")
        if node.norm is None:
            bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device) if bias is None else bias
            weight, bias = weight.clone(), bias.clone()
        else:
            weight, bias = fold_batch_norm(weight, bias, norm_state(node, state))
        parameters[f"{node.name}.weight"], parameters[f"{node.name}.bias"] = weight, bias
    learned = [name for name in graph.learned_thresholds if name in state]
    return parameters | {name: state[name].clamp(min=SMALLEST_THRESHOLD) for name in learned}


def _array(state: Mapping[str, Tensor], layer: str, kind: str) -> Tensor:
    if (array := state.get(f"{layer}.{kind}")) is None:
        raise ValueError(
            f"the state has no {layer}.{kind}, as where a model computes a weight from its parameters; take the state "
            "that snnfl.spiking.trace_with_state returns, or call snnfl.conversion.convert"
        )
    return array


def recover(
    graph: SpikingGraph,
    update: Mapping[str, Tensor],
    *,
    biases: bool,
    minimum_scale: float = 1e-6,
    fallback: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Recover the ANN's arrays from a spiking update: the server's inverse of :func:`fold`.

    Args:
        graph: Structure of both networks.
        update: ``<layer>.weight``, ``<layer>.bias`` and ``<norm>.gamma``, ``.beta``, ``.mean``, ``.var``.
        biases: Whether to infer the biases of layers that had one in the ANN, too ("bias back").
        minimum_scale: As in :func:`recover_weight`.
        fallback: ANN weights by name for dead channels.

    Returns:
        Weights, batch normalisation, learned thresholds and, if asked for, biases, under the ANN's names.

    Raises:
        UnrecoverableError: As :func:`recover_weight`, naming the layer.
    """
    state: dict[str, Tensor] = {}
    for node in graph.affines:
        weight, bias = update[f"{node.name}.weight"], update[f"{node.name}.bias"]
        if node.norm is not None:
            arrays = {field: update[f"{node.norm}.{field}"] for field in NORM_FIELDS}
            state |= {f"{node.norm}.{NORM_FIELDS[field]}": array for field, array in arrays.items()}
            if node.op == "scale":
                continue
            norm = BatchNormState(**arrays, eps=node.epsilon)
            known = None if fallback is None else node.outputs_first(fallback[f"{node.name}.weight"])
            try:
                weight = recover_weight(weight, norm, minimum_scale=minimum_scale, fallback=known)
            except UnrecoverableError as error:
                raise UnrecoverableError(f"{node.name}: {error}") from None
            bias = recover_bias(bias, norm, minimum_scale=minimum_scale)
        state[f"{node.name}.weight"] = node.as_in_ann(weight)
        if biases and node.has_bias:
            state[f"{node.name}.bias"] = bias
    return state | {name: update[name] for name in graph.learned_thresholds}


def unexplained_biases(graph: SpikingGraph, update: Mapping[str, Tensor], *, biases: bool) -> dict[str, Tensor]:
    """Return what is in an update's biases beyond the ANN's arrays that the server knows: ``b' - fold(known)``.

    Behind a batch normalisation it knows ``beta - mean gamma/sigma``; what is left is the private bias, times
    ``gamma/sigma``, and the calibration's shift. Elsewhere it knows nothing, and all of ``b'`` is left.

    Args:
        graph: Structure of the network.
        update: As in :func:`recover`.
        biases: Whether the server infers biases, too; of a layer that has one, nothing is left then.

    Returns:
        ``<layer>.bias`` of every affine layer, shape ``[out]``.
    """
    left = {}
    for node in graph.affines:
        bias = update[f"{node.name}.bias"]
        if biases and node.has_bias:
            bias = torch.zeros_like(bias)
        elif node.norm is not None:
            norm = BatchNormState(**{f: update[f"{node.norm}.{f}"] for f in NORM_FIELDS}, eps=node.epsilon)
            bias = bias - (norm.beta - norm.mean * norm.scale)
        left[f"{node.name}.bias"] = bias
    return left


def norm_state(node: Affine, state: Mapping[str, Tensor]) -> BatchNormState:
    """Read the batch normalisation behind a layer from an ANN's state; one without gamma and beta has 1 and 0."""
    mean, var = state[f"{node.norm}.running_mean"], state[f"{node.norm}.running_var"]
    gamma, beta = state.get(f"{node.norm}.weight"), state.get(f"{node.norm}.bias")
    return BatchNormState(
        gamma=torch.ones_like(var) if gamma is None else gamma,
        beta=torch.zeros_like(mean) if beta is None else beta,
        mean=mean,
        var=var,
        eps=node.epsilon,
    )


def _columns(per_channel: Tensor, weight: Tensor) -> Tensor:
    return per_channel.view(-1, *[1] * (weight.dim() - 1))
