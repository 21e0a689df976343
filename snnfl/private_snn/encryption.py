"""Encryption by training with spikes (Kim et al. 2022, Algorithm 2, step 2): an epoch as a function of explicit state.

Each image is encoded anew in each epoch, the network runs ``T`` steps, and weights and biases follow the gradient of

``L = (1 - m) CE(S(x), y) + m tau^2 KL(softmax(A(x) / tau) || softmax(S(x) / tau))``

(eq. 3; Hinton, Vinyals & Dean 2015 for the factor ``tau^2``), where ``S(x)`` are the potentials that the last layer has
accumulated, divided by ``T``, so that they are on the scale of the ANN's logits ``A(x)``. ``y`` are the soft labels
that the images were made for. Gradients go through time and, at spikes, through the surrogate (eq. 4 and 5); that of
the reset is left out, as in the authors' code. Thresholds and leaks stay.

Options that the paper doesn't have, to make a thief's work harder, are :mod:`snnfl.private_snn.locks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from snnfl import rng
from snnfl.config import EncryptionConfig
from snnfl.private_snn.locks import rounded, with_own_neurons, wrongness
from snnfl.private_snn.network import PublishedNetwork, run
from snnfl.training import TrainingDivergedError
from snnfl.training.optimisers import AdamState, adam_step

IMAGES_AT_ONCE = 256
"""Images whose logits the teacher gives at once."""


class Encryption(NamedTuple):
    """How far an encryption is.

    Attributes:
        network: With the weights so far.
        adam: State of the optimiser, of :func:`trained_names` in their order.
        epochs: That are done.
        losses: Mean loss of each of them.
    """

    network: PublishedNetwork
    adam: AdamState
    epochs: int
    losses: tuple[float, ...]


def trained_names(network: PublishedNetwork) -> list[str]:
    """Return the arrays that encryption trains: weights and biases."""
    return [f"{node.name}.{kind}" for node in network.graph.affines for kind in ("weight", "bias")]


def begin(network: PublishedNetwork) -> Encryption:
    """Return the state before the first epoch."""
    state = AdamState.of([network.parameters[name] for name in trained_names(network)])
    return Encryption(network, state, 0, ())


@torch.no_grad()
def teacher_logits(ann: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return what the ANN says of images, ``[N, classes]``."""
    return torch.cat([ann(part) for part in torch.split(images, IMAGES_AT_ONCE)])


def encryption_loss(logits: Tensor, labels: Tensor, taught: Tensor, config: EncryptionConfig) -> Tensor:
    """Return eq. 3 as a mean over images.

    Args:
        logits: Of the spiking network, ``[N, classes]``.
        labels: Soft labels, likewise.
        taught: Logits of the ANN, likewise.
        config: Weight and temperature of the distillation.
    """
    loss = (1 - config.distillation) * functional.cross_entropy(logits, labels)
    if config.distillation:
        tau = config.temperature
        student, teacher = (functional.log_softmax(each / tau, dim=1) for each in (logits, taught))
        divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        loss = loss + config.distillation * tau**2 * divergence
    return loss


def encrypt_epoch(
    state: Encryption,
    images: Tensor,
    labels: Tensor,
    taught: Tensor,
    config: EncryptionConfig,
    *,
    seed: int,
    report: Callable[[int], None] = lambda images: None,
) -> Encryption:
    """Train one epoch; what is given stays as it is.

    Order and spikes follow from the seed and the epoch, so that an encryption which was interrupted between two epochs
    ends with the same bits. Only ``sqrt(T)`` steps and as many states are in memory: :func:`snnfl.private_snn.run`.

    Args:
        state: After the epoch before.
        images: Synthetic ones, ``[N, *input_shape]``.
        labels: Their soft labels, ``[N, classes]``.
        taught: The ANN's logits of them, likewise.
        config: Rate, schedule, loss, batches.
        seed: Of order and spikes.
        report: Told how many images each batch had.

    Raises:
        TrainingDivergedError: If the mean loss is no longer a number.
    """
    if state.epochs == 0:
        owned = with_own_neurons(state.network, config, rng.generator(seed, "encryption neurons"))
        state = state._replace(network=owned)
    names = trained_names(state.network)
    fixed = {name: array for name, array in state.network.parameters.items() if name not in names}
    trained = {name: state.network.parameters[name].detach().clone().requires_grad_() for name in names}
    adam = AdamState(*([array.clone() for array in arrays] for arrays in state.adam))
    order = torch.randperm(len(images), generator=rng.generator(seed, "encryption order", state.epochs))
    total, rate = 0.0, config.rate(state.epochs)
    for number, chosen in enumerate(torch.split(order, config.batch_size)):
        draws = torch.Generator(images.device)
        draws.manual_seed(rng.derive_seed(seed, "encryption spikes", state.epochs, number))
        loss = _loss(state.network.holding({**trained, **fixed}), images, labels, taught, chosen, config, draws)
        gradients = torch.autograd.grad(loss, list(trained.values()))
        adam_step(list(trained.values()), gradients, adam, rate)
        total += float(loss.detach()) * len(chosen)
        report(len(chosen))
    if not math.isfinite(total):
        raise TrainingDivergedError(
            f"encryption diverged in epoch {state.epochs + 1} at learning rate {rate:g}; lower encryption.learning_rate"
        )
    done: Mapping[str, Tensor] = {**{name: array.detach() for name, array in trained.items()}, **fixed}
    if state.epochs + 1 == config.epochs:
        done = rounded(done, config)
    losses = (*state.losses, total / len(images))
    return Encryption(state.network.holding(done), adam, state.epochs + 1, losses)


def _loss(
    network: PublishedNetwork,
    images: Tensor,
    labels: Tensor,
    taught: Tensor,
    chosen: Tensor,
    config: EncryptionConfig,
    draws: torch.Generator,
) -> Tensor:
    some = chosen.to(images.device)
    network = network.holding(rounded(network.parameters, config))
    ((_, logits),) = run(
        network, images[some], draws, lengths=[network.steps], chunk=config.chunk, surrogate=config.surrogate
    )
    loss = encryption_loss(logits, labels[some].to(logits), taught[some], config)
    if config.relu_penalty:
        loss = loss + config.relu_penalty * wrongness(network.analog(images[some]), labels[some])
    return loss
