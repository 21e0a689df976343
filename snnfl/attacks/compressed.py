"""Uploads of which not everything was sent as it is: sparse ones, and quantised ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from snnfl.attacks.networks import Arrays

MOSTLY = 0.5
"""Part of the entries that must be exactly zero in an update that is sparse."""

FLOOR = 0.1
"""Of the median magnitude: a gradient of a hundred entries has smaller ones, its largest entries alone have not."""

ENTRIES = 100
"""Entries from which on that is sure."""

LEVELS = 256
"""Of one sign, at most, that codes of a byte can have."""

ROUNDINGS = 16
"""Units in the last place of the largest weight below which a change may be zero because it was rounded away."""

RANK_ROUNDINGS = 4.0
"""Such units, for each row and column, below which a singular value is rounding: of one step they are 0.3."""

TOLD = 1e-3
"""Part of the largest singular value that rounding may be where a rank tells whether entries of a byte are rounded."""

LOOKED_AT = 256
"""Rows and columns of which a rank is told, at most."""


def is_sparse(
    sent: Mapping[str, Tensor], changes: Mapping[str, Tensor], made_by_images: Callable[[], bool | None]
) -> bool:
    """Tell whether most of what changed was left out, as by a client that sends the largest changes alone.

    A gradient has exact zeros, too: rows of units that no image reached, columns of inputs that are zero, or entries
    where either is, image by image. So beside most entries being zero, linear layers' ranks have to be larger than
    images make them; or, where no layer's rank tells, the other entries begin at a size of their own, as the largest
    ones do.

    Args:
        sent: Arrays before the training.
        changes: Of those that changed.
        made_by_images: Tells whether linear layers' changes are such as images make (:func:`made_by`).
    """
    told = {name: change.flatten(1) for name, change in changes.items() if change.dim() > 1}
    zeros, entries = (sum(int(of(each)) for each in told.values()) for of in (_zeros, torch.numel))
    if zeros <= MOSTLY * entries:
        return False
    made = made_by_images()
    return _begins_late(told, sent) if made is None else not made


def made_by(
    sent: Mapping[str, Tensor], changes: Mapping[str, Tensor], ranks: Mapping[str, int], logits: str | None
) -> bool | None:
    """Tell whether linear layers' changes are sums of as few images' products as they were made of.

    ``dL/dW = sum_n d_n x_n^T``, beside it ``dL/db = sum_n d_n``, is of the rank of the number of images at most,
    whatever is zero or a multiple of whatever in it; and errors ``d_n`` of logits sum to zero. Which entries are left
    out, or how each is rounded, depends on each alone: that makes a matrix of nearly any rank and sums. Where it
    doesn't, nothing is lost that counts.

    Args:
        sent: Arrays before the training.
        changes: Of those that changed, without weight decay.
        ranks: Largest rank of each linear layer's change, by the layer's name.
        logits: Name of the layer that makes them.

    Returns:
        ``None`` where layers that tell hold less than half of the entries: others have no more rows or columns than
        images, or changed little for their rounding.
    """
    told = 0
    for name, rank in ranks.items():
        parts = [part for part in (f"{name}.weight", f"{name}.bias") if part in changes]
        if not parts:
            continue
        whole = torch.cat([changes[part].view(len(changes[part]), -1) for part in parts], 1)
        live = whole[whole.any(1)][:, whole.any(0)].double()
        if not live.numel() or not bool(live.isfinite().all()):
            continue
        live = live[:, :: -(-live.shape[1] // LOOKED_AT)]
        sums = [float(live.sum(0).norm()) / len(live) ** 0.5] if name == logits else []
        live = live[:: -(-len(live) // LOOKED_AT)]
        sizes = torch.linalg.svdvals(live)
        rounded = max(_rounding(array) for part in parts for array in (sent[part], sent[part] + changes[part]))
        least = RANK_ROUNDINGS * rounded * sum(side**0.5 for side in live.shape)
        if float(sizes[0]) * TOLD < least:
            continue
        beyond = sums + sizes[rank : rank + 1].tolist()
        if max(beyond, default=0.0) > least:
            return False
        told += whole.numel() if beyond else 0
    return True if 2 * told > sum(array.numel() for array in changes.values()) else None


def _zeros(change: Tensor) -> int:
    return int((change == 0).sum())


def _begins_late(changes: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> bool:
    """Tell whether no entry is small beside the others of its array."""
    ratios = [torch.empty(0)]
    for name, change in changes.items():
        sizes = change[change != 0].abs()
        if not len(sizes):
            continue
        if float(sizes.min()) <= ROUNDINGS * _rounding(sent[name]):
            return False
        ratios.append(sizes / sizes.median())
    pooled = torch.cat(ratios)
    return len(pooled) >= ENTRIES and float(pooled.min()) > FLOOR


def _rounding(weight: Tensor) -> float:
    return torch.finfo(weight.dtype).eps * float(weight.abs().max())


def steps_between(sent: Mapping[str, Tensor], returned: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the distance of neighbouring levels of each array whose changes are multiples of it, as codes make them.

    Args:
        sent: Arrays before the training.
        returned: Those that changed, after it.
    """
    found = {}
    for name, array in returned.items():
        change = array - sent[name]
        sizes = change.abs()
        told, finest = sizes[sizes != 0], ROUNDINGS * max(_rounding(sent[name]), _rounding(array))
        if sizes.numel() < ENTRIES or not len(told) or float(told.min()) <= finest:
            continue
        if float(change.max() - change.min()) <= finest:  # one level alone is no code
            continue
        step = float(told[told < 1.5 * told.min()].mean())
        levels = told / step
        if float(levels.max()) < LEVELS and float((levels - levels.round()).abs().max()) < 0.1:
            found[name] = step
    return found


def sent_alone(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Arrays:
    """Return a gradient where a sparse one has entries, and elsewhere what of it is too large to have been left out.

    Of an array whose largest entries were sent the smallest of these is a bound ``b`` of all others: of another's entry
    ``g`` in such a place ``sign(g) max(|g| - b, 0)`` is left, which should be zero.
    """
    kept = {}
    for name, array in found.items():
        sizes = torch.where(wanted[name] != 0, wanted[name].abs(), torch.inf)
        beyond = array.sign() * (array.abs() - sizes.amin()).clamp_min(0)
        kept[name] = torch.where(wanted[name] != 0, array, beyond)
    return kept


def as_sent(
    made: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    steps: Mapping[str, float],
    generator: torch.Generator,
    *,
    sparse: bool,
) -> Arrays:
    """Return what a client would send of a gradient, as another one was sent.

    Args:
        made: The gradient.
        wanted: What was sent of the other one.
        steps: Between codes of a quantised one, by array; empty for none.
        generator: Draws roundings.
        sparse: Whether of each array only as many of the largest entries are sent as the other one has.
    """
    found = dict(made)
    for name, step in steps.items():
        if step > 0 and name in found:
            draw = torch.rand(found[name].shape, generator=generator)
            found[name] = step * (found[name] / step + draw).floor()
    if sparse:
        for name, array in found.items():
            count = int((wanted[name] != 0).sum())
            least = array.abs().flatten().topk(count).values[-1] if count else math.inf
            found[name] = torch.where(array.abs() >= least, array, 0.0)
    return found


def rounding_share(wanted: Mapping[str, Tensor], steps: Mapping[str, float]) -> float:
    """Estimate how much of a quantised gradient is rounding, as a part of its norm.

    The variance of rounding ``v`` at random is ``|v| (s - |v|)`` between code 0 and the next ones, ``s^2/6`` on average
    between others. Its sum is estimated by what was sent: ``s^2`` for a code of 1, for that of the values that it
    stands for is ``s |v|`` at most, and ``s^2/6`` for a larger one.

    Args:
        wanted: The gradient as it was sent.
        steps: Between its codes.
    """
    variance = total = 0.0
    for name, array in wanted.items():
        total += float(array.double().square().sum())
        step = steps.get(name, 0.0)
        if step > 0:
            codes = (array / step).abs().round()
            variance += step**2 * (float((codes == 1).sum()) + float((codes > 1).sum()) / 6)
    return min(1.0, math.sqrt(variance / total)) if total > 0 else 0.0
