"""How near a found event recording is to the true one: counts of events by time step and pixel.

Recordings are ``[N, T, channels, *space]``, in any unit: the smallest positive value of a true recording is one event,
and found values are rounded to whole numbers of it. Each function returns one number per recording, ``[N]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnfl.metrics.images import ssim


def event_f1(found: Tensor, true: Tensor) -> Tensor:
    """Return the F1 score of the events, ``2 TP / (found + true)``: right time step, pixel and polarity.

    ``TP = sum min(found, true)``: of several events in one place and step, as many are right as both have (van
    Rijsbergen 1979, on multisets). Two empty recordings score 1.

    Args:
        found: Shape ``[N, T, ...]``.
        true: As ``found``.

    >>> event_f1(torch.tensor([[[1.0, 1.0, 0.0]]]), torch.tensor([[[1.0, 0.0, 1.0]]]))
    tensor([0.5000])
    """
    found, true = counted(found, true)
    right, total = torch.minimum(found, true).flatten(1).sum(1), (found + true).flatten(1).sum(1)
    return torch.where(total > 0, 2 * right / total.clamp_min(1), torch.ones_like(total)).float()


def exact_frames(found: Tensor, true: Tensor) -> Tensor:
    """Return the share of true frames with events that are found without a mistake, in any order.

    A found frame counts once, so of two equal true frames both are found only if there are two of it. A recording
    whose share is 1 is recovered exactly, up to the order of its time steps. One without events scores 1.

    Args:
        found: Shape ``[N, T, ...]``; the numbers of steps may differ.
        true: As ``found``.
    """
    shares = []
    for own, wanted in zip(*counted(found, true, same_steps=False), strict=True):
        left = [frame.flatten().tolist() for frame in own]
        frames = [frame.flatten().tolist() for frame in wanted if frame.any()]
        right = 0
        for frame in frames:
            if frame in left:
                left.remove(frame)
                right += 1
        shares.append(right / len(frames) if frames else 1.0)
    return torch.tensor(shares)


def van_rossum(found: Tensor, true: Tensor, *, tau: float = 1.0) -> Tensor:
    """Return the van Rossum distance, with each pixel and polarity as a spike train of its own.

    ``D^2 = (1/tau) sum_p integral (f_p - g_p)^2 dt`` with ``f_p(t) = sum_i exp(-(t - t_i)/tau) [t >= t_i]``
    (van Rossum, "A novel spike distance", Neural Computation 2001), summed over the trains (Houghton & Sen 2008,
    labelled lines). The integral is analytic: ``D^2 = 1/2 sum_p sum_st d_ps d_pt exp(-|s - t|/tau)`` with the
    difference ``d`` of the counts. So one surplus event has the distance ``1/sqrt(2)``.

    Args:
        found: Shape ``[N, T, ...]``.
        true: As ``found``.
        tau: Of the kernel, in time steps.

    >>> van_rossum(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[1.0], [0.0]]]))
    tensor([0.7951])
    """
    found, true = counted(found, true)
    change = (found - true).flatten(2)
    steps = torch.arange(change.shape[1], dtype=change.dtype)
    kernel = torch.exp(-(steps[:, None] - steps).abs() / tau)
    return (torch.einsum("nsp,st,ntp->n", change, kernel, change) / 2).clamp_min(0).sqrt().float()


def victor_purpura(found: Tensor, true: Tensor, *, cost: float = 0.5) -> Tensor:
    """Return the Victor-Purpura distance, summed over pixels and polarities.

    The smallest cost of turning one spike train into the other: 1 for adding or removing an event, ``cost`` for moving
    one by a time step (Victor & Purpura, "Nature and precision of temporal coding in visual cortex", Journal of
    Neurophysiology 1996, ``D^spike``). ``G[i, j] = min(G[i-1, j] + 1, G[i, j-1] + 1, G[i-1, j-1] + cost |a_i - b_j|)``
    over the first ``i`` events of one and ``j`` of the other, for all trains at once.

    Args:
        found: Shape ``[N, T, ...]``.
        true: As ``found``.
        cost: Of a shift by one step; above 2 none is shifted.

    >>> victor_purpura(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[1.0], [0.0]]]))
    tensor([0.5000])
    """
    found, true = counted(found, true)
    trains = [values.flatten(2).movedim(1, 2).flatten(0, 1) for values in (found, true)]
    differ = (trains[0] != trains[1]).any(1)
    distances = torch.zeros(len(differ), dtype=torch.float64)
    distances[differ] = _edit_distances(_times(trains[0][differ]), _times(trains[1][differ]), cost)
    return distances.view(len(found), -1).sum(1).float()


def _times(counts: Tensor) -> Tensor:
    """Turn counts ``[P, T]`` into ascending times of events, ``[P, most]``, with -1 where a train has no more."""
    events = counts.sum(1).long()
    ends = counts.cumsum(1)
    places = torch.arange(int(events.max()) if len(events) else 0)
    times = (ends[:, None] <= places[:, None]).sum(2)
    return torch.where(places < events[:, None], times, -1).double()


def _edit_distances(first: Tensor, second: Tensor, cost: float) -> Tensor:
    """Return the edit distance of each pair of trains, given as by :func:`_times`."""
    lengths = [(times >= 0).sum(1) for times in (first, second)]
    row = torch.arange(second.shape[1] + 1).double().expand(len(first), -1)
    result = torch.where(lengths[0] == 0, lengths[1].double(), 0.0)
    for i in range(first.shape[1]):
        entries = [row[:, 0] + 1]
        for j in range(second.shape[1]):
            moved = row[:, j] + cost * (first[:, i] - second[:, j]).abs()
            entries.append(torch.minimum(torch.minimum(row[:, j + 1], entries[-1]) + 1, moved))
        row = torch.stack(entries, 1)
        result = torch.where(lengths[0] == i + 1, row.gather(1, lengths[1][:, None])[:, 0], result)
    return result


def time_surface_ssim(found: Tensor, true: Tensor, *, tau: float = 2.0) -> Tensor:
    """Return the structural similarity of the time surfaces, the mean over all time steps.

    ``S(t, p) = exp(-(t - t_p)/tau)`` with the last event ``t_p <= t`` of a pixel and polarity, and 0 before its first
    one (Lagorce et al., "HOTS", IEEE TPAMI 2017). It is a picture of what moved, in which an event that is one
    step late weighs little.

    Args:
        found: Shape ``[N, T, C, H, W]``.
        true: As ``found``.
        tau: Of the decay, in time steps.

    Raises:
        ValueError: If the frames are no pictures.
    """
    if true.dim() != 5:
        raise ValueError(f"time surfaces of shape {list(true.shape)}: expected [N, T, C, H, W]; take van_rossum")
    surfaces = [time_surface(values, tau).flatten(0, 1).float() for values in counted(found, true)]
    return ssim(*surfaces).view(len(true), -1).mean(1)


def time_surface(counts: Tensor, tau: float) -> Tensor:
    """Return ``exp(-(t - t_p)/tau)`` of counts ``[N, T, ...]`` at each step, of the same shape."""
    surface, found = torch.zeros_like(counts[:, 0]), []
    decay = torch.exp(torch.tensor(-1 / tau, dtype=counts.dtype))
    for frame in counts.unbind(1):
        surface = torch.where(frame > 0, torch.ones_like(surface), surface * decay)
        found.append(surface)
    return torch.stack(found, 1)


def counted(found: Tensor, true: Tensor, *, same_steps: bool = True) -> tuple[Tensor, Tensor]:
    """Return both as whole numbers of events, float64: a unit is the smallest positive value of the true recording.

    Args:
        found: Shape ``[N, T, ...]``; negative and undefined values count as none.
        true: Shape ``[N, T, ...]``, multiples of a unit; of a recording without any event the unit is 1.
        same_steps: Whether the numbers of steps must agree.

    Raises:
        ValueError: If the shapes differ.
    """
    skip = 1 if same_steps else 2
    if len(found) != len(true) or found.dim() != true.dim() or found.shape[skip:] != true.shape[skip:]:
        raise ValueError(f"found recordings of shape {list(found.shape)}, true ones of {list(true.shape)}")
    flat = true.double().flatten(1)
    units = torch.where(flat > 0, flat, torch.inf).amin(1)
    units = torch.where(units.isfinite(), units, 1.0).view(-1, *[1] * (true.dim() - 1))
    return tuple((values.double().nan_to_num(0, 0, 0) / units).round().clamp_min(0) for values in (found, true))  # type: ignore[return-value]
