"""Federated averaging with central differential privacy, literally.

Fixed clipping: McMahan et al., "Learning differentially private recurrent language models", ICLR 2018, algorithm 1 with
flat clipping, uniform weights and a fixed denominator. Adaptive clipping: Andrew et al., "Differentially private
learning with adaptive clipping", NeurIPS 2021, algorithm 1. Running statistics are part of an update, and a variance
that noise makes negative is 0.
"""

import math

import torch
from references.robust import arrays, local_models


def run(model, data, rounds, *, rate, clip, z, draws, quantile=None, eta=0.0, sigma_b=0.0):
    """Return the model after the last round.

    Args:
        clip: ``C``, the bound of an update's norm; of adaptive clipping the first one.
        z: Noise multiplier.
        draws: ``draws(t, purpose, n)`` are round t's standard normal numbers: ``noise``, and the ``clipped count``'s.
        quantile: ``gamma``, the part of the updates that shall not be clipped; ``None`` for fixed clipping.
        eta: Learning rate of the bound.
        sigma_b: Noise of the count of updates that weren't clipped.
    """
    z_delta = z if quantile is None else (z**-2 - (2 * sigma_b) ** -2) ** -0.5
    for t in range(1, rounds + 1):
        vectors, _ = local_models(model, data[t], rate)
        w_t, n = torch.cat([w.flatten() for w in arrays(model)]).double(), len(vectors)
        total, unclipped = torch.zeros_like(w_t), 0
        for vector in vectors:
            delta = vector.double() - w_t
            norm = float(delta.norm())
            unclipped += norm <= clip
            total += delta * min(1, clip / norm)
        total += z_delta * clip * torch.from_numpy(draws(t, "noise", len(w_t)))
        start = 0
        with torch.no_grad():
            for w in arrays(model):
                w += (total[start : start + w.numel()] / n).view_as(w)
                start += w.numel()
            for name, array in model.state_dict().items():
                if name.endswith("running_var"):
                    array.clamp_(min=0)
        if quantile is not None:
            # The count is of those that were clipped, each as b - 1/2: the same number, mirrored about 1/2.
            noisy = (unclipped - n / 2 - sigma_b * draws(t, "clipped count", 1)[0]) / n + 0.5
            clip = clip * math.exp(-eta * (noisy - quantile))
    return model
