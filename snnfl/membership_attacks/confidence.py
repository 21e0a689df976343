"""How sure a network is of a sample's label: the numbers that membership attacks compare."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from snnfl.threat import MembershipView, Shadow, Signals

_KEPT: MutableMapping[Tensor, dict[str, tuple[Tensor, Tensor]]] = WeakIdKeyDictionary()
"""By logits and kind of confidence: for which labels, and the values."""


def log_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``log softmax(logits)[label]``, the negative cross-entropy.

    Args:
        logits: ``[..., N, classes]``.
        labels: ``[N]``, int64.

    Returns:
        float64 ``[..., N]``.

    >>> log_confidence(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor([0.2500], dtype=torch.float64)
    """
    return _kept(_log_confidence, logits, labels)


def logit_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``log p - log(1 - p)`` of the label's probability ``p``, which is about normal over networks.

    ``z_y - log sum_(c != y) exp z_c``, without rounding ``1 - p`` (Carlini et al., "Membership inference attacks from
    first principles", S&P 2022, section VI-A). Arguments and shapes as :func:`log_confidence`.

    >>> logit_confidence(torch.tensor([[0.0, 100.0]]), torch.tensor([1]))
    tensor([100.], dtype=torch.float64)
    """
    return _kept(_logit_confidence, logits, labels)


def _log_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    every = logits.double().log_softmax(-1)
    index = labels.expand(every.shape[:-1]).unsqueeze(-1)
    return every.gather(-1, index).squeeze(-1)


def _logit_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    values = logits.double()
    index = labels.expand(values.shape[:-1]).unsqueeze(-1)
    others = values.scatter(-1, index, -torch.inf).logsumexp(-1)
    return values.gather(-1, index).squeeze(-1) - others


def _kept(confidence: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    """Compute a confidence once for as long as the logits exist: each attack asks for each target's shadows anew."""
    known, kind = _KEPT.setdefault(logits, {}), confidence.__name__
    if kind not in known or known[kind][0] is not labels:
        known[kind] = labels, confidence(logits, labels)
    return known[kind][1].clone()  # an attack may change what it is given


def target_of(view: MembershipView) -> Signals:
    """Return the target's signals, of an attack that needs ``query``."""
    if view.target is None:
        raise ValueError("needs query")
    return view.target


def labels_of(view: MembershipView) -> Tensor:
    """Return the samples' labels, of an attack that needs ``labels``."""
    if view.labels is None:
        raise ValueError("needs labels")
    return view.labels


def members_of(shadows: Sequence[Shadow]) -> Tensor:
    """Return the shadows' in and out bits, bool ``[S, N]``."""
    return torch.stack([shadow.members for shadow in shadows])


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Average columns over the rows where a mask holds; NaN where it holds in none.

    Args:
        values: ``[S, N]``.
        where: bool ``[S, N]``.
    """
    return torch.where(where, values, 0.0).sum(0) / where.sum(0)


def without_ties(shares: Tensor, step: float, by: Tensor) -> Tensor:
    """Order what counting cannot tell apart: add less than half a step of a share, increasing in ``by``.

    A share of S shadows or M samples has S or M + 1 values, and at a false positive rate of 1 % ties cost an attacker
    what it knows. Two different shares keep their order.

    >>> without_ties(torch.tensor([0.5, 0.5, 1.0]), 0.5, torch.tensor([-3.0, 3.0, -9.0])).argsort()
    tensor([0, 1, 2])
    """
    return shares + step / 2 * torch.sigmoid(by)
