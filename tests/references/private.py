"""Federated averaging with central differential privacy, literally.

Fixed clipping: McMahan et al., "Learning differentially private recurrent language models", ICLR 2018, algorithm 1 with
flat clipping. Adaptive clipping: Andrew et al., "Differentially private learning with adaptive clipping", NeurIPS 2021,
algorithm 1. Both weigh all clients alike (``uniform``); else, as in Flower, a client weighs by its examples. Running
statistics are part of an update, and a variance that noise makes negative is 0.
"""

import math

import torch
from references.robust import arrays, local_models


def run(model, data, rounds, *, rate, clip, z, draws, quantile=None, eta=0.0, sigma_b=0.0, uniform=False):
    """Return the model after the last round.

    Args:
        clip: ``C``, the bound of an update's norm; of adaptive clipping the first one.
        z: Noise multiplier.
        draws: ``draws(t)`` is the source of round t's noise: NumPy's.
        quantile: ``gamma``, the part of the updates that shall not be clipped; ``None`` for fixed clipping.
        eta: Learning rate of the bound.
        sigma_b: Noise of the count of updates that weren't clipped.
    """
    z_delta = z if quantile is None else (z**-2 - (2 * sigma_b) ** -2) ** -0.5
    for t in range(1, rounds + 1):
        source = draws(t)
        vectors, sizes = local_models(model, data[t], rate)
        sizes = [1] * len(sizes) if uniform else sizes
        w_t = torch.cat([w.flatten() for w in arrays(model)])
        total, unclipped = torch.zeros_like(w_t), 0
        for vector, size in zip(vectors, sizes, strict=True):
            delta = vector - w_t
            norm = float(delta.double().norm())
            unclipped += norm <= clip
            total += size / sum(sizes) * delta * min(1, clip / norm)
        bound = clip
        if quantile is not None:
            # Flower counts, and draws the noise of, those that were clipped: the same number, mirrored.
            noisy = len(vectors) - source.normal(len(vectors) - unclipped, sigma_b)
            bound = clip * math.exp(-eta * (noisy / len(vectors) - quantile))
        deviation, start = z_delta * clip / len(vectors), 0
        with torch.no_grad():
            for w in arrays(model):
                noise = torch.from_numpy(source.normal(0, deviation, tuple(w.shape))).float()
                w += total[start : start + w.numel()].view_as(w) + noise
                start += w.numel()
            for name, array in model.state_dict().items():
                if name.endswith("running_var"):
                    array.clamp_(min=0)
        clip = bound
    return model
