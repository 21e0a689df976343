"""Robust aggregation, literally.

Median and trimmed mean: Yin et al., "Byzantine-robust distributed learning", ICML 2018, definitions 1 and 2. Krum and
Multi-Krum: Blanchard et al., "Machine learning with adversaries", NeurIPS 2017, section 4. Bulyan: El Mhamdi et al.,
"The hidden vulnerability of distributed learning in Byzantium", ICML 2018, section 4. Flower departs from them twice:
Multi-Krum's average weighs by examples, and Bulyan selects by Krum all at once where the paper selects one update after
another and scores those that are left anew. Running statistics of batch normalisation are coordinates like any other.
"""

import copy

import torch
from references.fedavg import client_update


def arrays(model):
    """Return what is exchanged, in order: parameters and running statistics."""
    return [array for array in model.state_dict().values() if array.is_floating_point()]


def local_models(model, epochs_of_clients, rate):
    """Return each client's trained arrays as one vector, and its number of examples."""
    vectors, sizes = [], []
    for epochs in epochs_of_clients:
        local = copy.deepcopy(model)
        client_update(local, epochs, rate)
        vectors.append(torch.cat([w.flatten() for w in arrays(local)]))
        sizes.append(sum(len(labels) for _, labels in epochs[-1]))
    return vectors, sizes


def median(vectors, sizes):
    values, n = torch.stack(vectors).sort(dim=0).values, len(vectors)
    return values[n // 2] if n % 2 else (values[n // 2 - 1] + values[n // 2]) / 2


def trimmed_mean(vectors, sizes, *, beta):
    values, cut = torch.stack(vectors).sort(dim=0).values, int(beta * len(vectors))
    return values[cut : len(vectors) - cut].mean(0)


def by_krum_score(vectors, f):
    """Return the clients by score ``s(i)``: the sum of the squared distances to the ``n - f - 2`` closest others."""
    scores = []
    for i, v_i in enumerate(vectors):
        squared = sorted(float(((v_i.double() - v_j.double()) ** 2).sum()) for j, v_j in enumerate(vectors) if j != i)
        scores.append(sum(squared[: len(vectors) - f - 2]))
    return sorted(range(len(vectors)), key=scores.__getitem__)


def krum(vectors, sizes, *, f):
    return vectors[by_krum_score(vectors, f)[0]]


def multi_krum(vectors, sizes, *, f, m, uniform=False):
    chosen, sizes = by_krum_score(vectors, f)[:m], [1] * len(sizes) if uniform else sizes
    return sum(sizes[i] * vectors[i] for i in chosen) / sum(sizes[i] for i in chosen)


def bulyan(vectors, sizes, *, f):
    theta = len(vectors) - 2 * f
    beta = theta - 2 * f
    selected = [vectors[i] for i in by_krum_score(vectors, f)[:theta]]
    middle, stacked = median(selected, sizes), torch.stack(selected)
    closest = (stacked - middle).abs().argsort(dim=0)[:beta]
    return stacked.gather(0, closest).mean(0)


def run(model, data, rounds, *, rate, rule, **parameters):
    for t in range(1, rounds + 1):
        vectors, sizes = local_models(model, data[t], rate)
        aggregate, start = rule(vectors, sizes, **parameters), 0
        with torch.no_grad():
            for w in arrays(model):
                w.copy_(aggregate[start : start + w.numel()].view_as(w))
                start += w.numel()
    return model
