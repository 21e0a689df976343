"""A client's local training, simulated differentiably, and what its update says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import grad

from snnfl.attacks.factors import Factors
from snnfl.attacks.networks import Arrays, Network, soft_cross_entropy
from snnfl.batching import batch_sizes

PREVIOUS = "previous/"
"""Before the names of arrays that a penalty compares with, and no step changes."""

CONVERTED = "converted/"
"""Before the names of folded arrays that a client converted after its last step."""


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """SGD as :func:`snnfl.training.train_locally` runs it.

    Attributes:
        batch_size: Images per step; the last batch of an epoch is as :func:`~snnfl.batching.batch_sizes` has it.
        epochs: Passes over the images.
        learning_rate: Above 0.
        momentum: The buffer starts at the first gradient.
        weight_decay: Times the weight, added to its gradient.
        clip_norm: Bound of the norm of each step's gradient, or ``None``.
        clients: How many clients train, each on its own part of the images, with their mean as the update; batches are
            those of all together.
        penalty: What is minimised beside the cross-entropy (:mod:`snnfl.attacks.penalties`).
        pull: What FedProx's term in it, ``pull/2 |w - w_0|^2``, draws decayed weights back by; 0 without, and where it
            is clipped together with the gradient.
    """

    batch_size: int
    epochs: int = 1
    learning_rate: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clients: int = 1
    pull: float = 0.0
    penalty: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Tensor], Tensor] | None = None


def difference(sent: Mapping[str, Tensor], returned: Mapping[str, Tensor], learning_rate: float) -> Arrays:
    """Return ``(sent - returned) / learning_rate``: the gradient, if the client took one step without weight decay.

    Args:
        sent: Arrays before the local training.
        returned: Arrays after it; those that aren't among ``sent`` are left out.
        learning_rate: Of the local steps.
    """
    return {name: (sent[name] - array) / learning_rate for name, array in returned.items() if name in sent}


def decayed(local: LocalTraining, steps: int) -> float:
    """Return what of :func:`difference` is weight decay of what was sent, as a factor of it.

    Local training is linear in weights and gradients: what it does to the weights without any gradient is this part,
    and the rest are gradients alone.

    Args:
        local: How the client trains.
        steps: SGD steps of the round.
    """
    weight, velocity = 1.0, 0.0
    for _ in range(steps):
        velocity = local.momentum * velocity + local.weight_decay * weight - local.pull * (1.0 - weight)
        weight -= local.learning_rate * velocity
    return (1.0 - weight) / local.learning_rate


def simulate(
    network: Network,
    arrays: Mapping[str, Tensor],
    trained: tuple[str, ...],
    inputs: Tensor,
    targets: Tensor,
    local: LocalTraining,
    orders: Tensor | None = None,
) -> Arrays:
    """Train on dummy images and return what :func:`difference` would see of it, differentiably.

    ``g_k = clip(grad L(w_k)) + wd w_k``, ``v_0 = g_0``, ``v_k = m v_{k-1} + g_k``, ``w_{k+1} = w_k - lr v_k``;
    the result is ``(w_0 - w_K) / lr = sum_k v_k`` (Geiping et al. 2020, section 6, for FedAvg; with one step it is the
    gradient).

    Args:
        network: What is trained.
        arrays: Its arrays at the start.
        trained: Those of them whose change was observed. All are trained, as far as it shows.
        inputs: Dummy images, ``[N, ...]``.
        targets: Their label probabilities, ``[N, classes]``.
        local: How the client trains.
        orders: Which images each epoch takes, in its order, ``[epochs, examples]``; without, each takes them as they
            stand.
    """
    if local.clients > 1:
        size = len(inputs) // local.clients
        alone = replace(local, clients=1, batch_size=local.batch_size // local.clients)
        found = []
        for start in range(0, len(inputs), size):
            part = slice(start, start + size)
            order = None if orders is None else orders[:, part] - start
            found.append(simulate(network, arrays, trained, inputs[part], targets[part], alone, order))
        return {name: torch.stack([each[name] for each in found]).mean(0) for name in trained}
    batches = list[tuple[Tensor, Tensor]]()
    for epoch in range(local.epochs):
        pair = (inputs, targets) if orders is None else (inputs[orders[epoch]], targets[orders[epoch]])
        sizes = batch_sizes(len(pair[0]), local.batch_size)
        batches += zip(*(torch.split(values, sizes) for values in pair), strict=True)
    kept = ("running_mean", "running_var")
    own = [name for name in arrays if not name.endswith(kept) and not name.startswith((PREVIOUS, CONVERTED))]
    moving = own if len(batches) > 1 else trained
    fixed = {name: array for name, array in arrays.items() if name not in moving}

    def loss(weights: Arrays, some: Tensor, wanted: Tensor) -> Tensor:
        now = {**fixed, **weights}
        value = soft_cross_entropy(network(now, some), wanted)
        return value if local.penalty is None else value + local.penalty(arrays, now, some)

    weights: Arrays = {name: arrays[name] for name in moving}
    velocity, total = dict[str, Tensor](), dict[str, Tensor]()
    for some, wanted in batches:
        gradient = grad(loss)(weights, some, wanted)
        if local.clip_norm is not None:
            gradient = _clipped(gradient, local.clip_norm)
        decay = local.weight_decay
        slope = {name: gradient[name] + decay * weights[name] if decay else gradient[name] for name in weights}
        velocity = {name: local.momentum * velocity[name] + slope[name] if velocity else slope[name] for name in slope}
        weights = {name: weights[name] - local.learning_rate * velocity[name] for name in weights}
        total = {name: total[name] + velocity[name] if total else velocity[name] for name in velocity}
    return {name: total[name] for name in trained}


def _clipped(gradient: Arrays, bound: float) -> Arrays:
    """Return ``g min(1, C / |g|)`` over all arrays together, as :func:`torch.nn.utils.clip_grad_norm_` does."""
    norm = torch.stack([array.square().sum() for array in gradient.values()]).sum().sqrt()
    factor = (bound / (norm + 1e-6)).clamp(max=1.0)
    return {name: factor * array for name, array in gradient.items()}


def l2_distance(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Return ``sum_l ||g'_l - g_l||^2`` (Zhu et al. 2019, eq. 4; SNFL eq. 4)."""
    return torch.stack([(found[name] - array).square().sum() for name, array in wanted.items()]).sum()


def cosine_distance(found: Mapping[str, Tensor | Factors], wanted: Mapping[str, Tensor]) -> Tensor:
    """Return ``1 - <g', g> / (||g'|| ||g||)`` over all arrays together (Geiping et al. 2020, eq. 4)."""
    products, squares, dense = list[Tensor](), list[Tensor](), dict[str, Tensor]()
    for name in wanted:
        if isinstance(array := found[name], Factors):
            products.append(array.inner(wanted[name]))
            squares.append(array.square())
        else:
            dense[name] = array
    if dense:  # as one array: of a small network, what each further operation costs is the call
        one, other = (torch.cat([arrays[name].flatten() for name in dense]) for arrays in (dense, wanted))
        products.append((one * other).sum())
        squares.append((one * one).sum())
    product, square = (sum(terms[1:], terms[0]) for terms in (products, squares))
    wanted_square = torch.stack([array.square().sum() for array in wanted.values()]).sum()
    return 1 - product / (square * wanted_square).clamp_min(1e-30).sqrt()


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels, down and across; zero for what has no picture."""
    if images.dim() < 4:
        return images.new_zeros(())
    return images.diff(dim=-2).abs().mean() + images.diff(dim=-1).abs().mean()
