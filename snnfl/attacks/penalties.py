"""What clients minimise beside the cross-entropy, FedProx's and MOON's terms, as an attacker differentiates it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfl.attacks.local import PREVIOUS
from snnfl.attacks.networks import Arrays, Network, output_network_of
from snnfl.threat import ServerView, ThreatModelError

Penalty = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Tensor], Tensor]
"""``(arrays at the start, arrays now, inputs) -> what is added to the mean loss of a batch``."""


def proximal(mu: float, trained: frozenset[str]) -> Penalty:
    """Return ``mu/2 |w - w_t|^2`` over the trained arrays (Li et al., "Federated optimization", MLSys 2020, eq. 2).

    In the first step it has no gradient.

    Args:
        mu: Of the term, at least 0.
        trained: Names of ``w``.
    """

    def penalty(start: Mapping[str, Tensor], now: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        return mu / 2 * torch.stack([(now[name] - start[name]).square().sum() for name in sorted(trained)]).sum()

    return penalty


def model_contrastive(own: Network, frozen: Network, *, mu: float, temperature: float) -> Penalty:
    """Return MOON's contrastive term, as :func:`snnfl.training.objectives.model_contrastive` has it.

    ``-mu log(exp(sim(z, z_glob)/tau) / (exp(sim(z, z_glob)/tau) + exp(sim(z, z_prev)/tau)))``, where ``z`` is what the
    output layer receives (Li et al., CVPR 2021, eq. 3 to 5). Of the arrays at the start, those called :data:`PREVIOUS`
    make ``z_prev``.

    Args:
        own: From arrays and inputs to ``z``, as the client's model computes it while it trains.
        frozen: Likewise, in evaluation mode.
        mu: Of the term.
        temperature: ``tau``.
    """

    def penalty(start: Mapping[str, Tensor], now: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        z = own(now, inputs)
        past = {name.removeprefix(PREVIOUS): array for name, array in start.items() if name.startswith(PREVIOUS)}
        others = [frozen(arrays, inputs) for arrays in (start, past)]
        similarities = torch.stack([F.cosine_similarity(z, other, dim=1) for other in others], dim=1)
        return -mu * F.log_softmax(similarities / temperature, dim=1)[:, 0].mean()

    return penalty


def penalty_of(view: ServerView, arrays: Arrays, norm_mode: Literal["train", "eval"]) -> tuple[Penalty | None, Arrays]:
    """Return what the client of a view minimised beside the cross-entropy, and the arrays that this needs.

    Args:
        view: Of the attacked round.
        arrays: Of the problem, guesses included.
        norm_mode: How batch normalisation is differentiated.

    Raises:
        ThreatModelError: For MOON, if the client's earlier rounds are denied, or the model has no last module.
    """
    known = view.knowledge
    if known.contrastive_mu:
        previous = _previous(view, arrays)
        own, frozen = output_network_of(view.model, norm_mode), output_network_of(view.model, "eval")
        term = model_contrastive(own, frozen, mu=known.contrastive_mu, temperature=known.temperature)
        return term, {f"{PREVIOUS}{name}": array for name, array in previous.items()}
    if known.proximal_mu and known.steps != 1:
        return proximal(known.proximal_mu, _trained(view.model)), {}
    return None, {}


def _previous(view: ServerView, arrays: Arrays) -> Arrays:
    """Return the client's arrays after its last local training, as far as the server knows them; else initial ones.

    What a client clipped before it sent them, the server knows by direction alone, and takes as it came.
    """
    known = view.knowledge
    if not known.earlier_rounds:
        raise ThreatModelError("MOON's clients compare with their last model; needs earlier_rounds, which are denied")
    if view.earlier:
        last = view.earlier[-1]
        return {**arrays, **view.format.decode(last.received, last.sent, biases=False)}
    if view.initial is None:
        raise ThreatModelError("MOON's clients compare with their first model; needs initial_weights, which are denied")
    return {**arrays, **view.initial}


def _trained(model: nn.Module) -> frozenset[str]:
    return frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
