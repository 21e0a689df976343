"""SCAFFOLD, literally: Karimireddy et al., "SCAFFOLD: Stochastic controlled averaging", ICML 2020, algorithm 1.

Option II. Without momentum (``rho = 0``) it is the paper's. With it the velocity follows the corrected gradients, and
``K`` in option II is what these weigh together: ``sum_j (1 - rho^j) / (1 - rho)`` for ``j = 1 ... K``, so that ``c_i``
stays a mean of gradients. Running statistics are averaged, all clients alike.
"""

import copy

import torch
from references.statistics import average_statistics
from torch.nn import functional


def client_update(y, x, c, c_i, epochs, rate, rho):
    """Train ``y`` in place from ``x``; return ``c_i^+``."""
    y.train()
    velocities = [torch.zeros_like(w) for w in y.parameters()]
    steps = 0
    for batches in epochs:
        for inputs, labels in batches:
            y.zero_grad()
            functional.cross_entropy(y(inputs), labels).backward()
            with torch.no_grad():
                for w, v, one, own in zip(y.parameters(), velocities, c, c_i, strict=True):
                    v.mul_(rho).add_(w.grad - own + one)
                    w -= rate * v
            steps += 1
    weight = sum((1 - rho**j) / (1 - rho) for j in range(1, steps + 1))
    with torch.no_grad():
        together = zip(c, c_i, x.parameters(), y.parameters(), strict=True)
        return [own - one + (w_x - w_y) / (weight * rate) for one, own, w_x, w_y in together]


def run(model, data, rounds, *, rate, server_rate, rho=0.9, selected=None, whole=False):
    """``selected[t]`` are the clients of round t, by default all; ``whole`` also returns ``c`` and every ``c_i``."""
    c = [torch.zeros_like(w) for w in model.parameters()]
    own = [[torch.zeros_like(w) for w in model.parameters()] for _ in data[1]]
    for t in range(1, rounds + 1):
        clients = range(len(data[t])) if selected is None else selected[t]
        locals_, changes = [], []
        for k in clients:
            y = copy.deepcopy(model)
            renewed = client_update(y, model, c, own[k], data[t][k], rate, rho)
            changes.append([new - old for new, old in zip(renewed, own[k], strict=True)])
            own[k] = renewed
            locals_.append(y)
        with torch.no_grad():
            for j, w in enumerate(model.parameters()):
                w += server_rate / len(locals_) * sum(list(y.parameters())[j] - w for y in locals_)
                c[j] = c[j] + sum(change[j] for change in changes) / len(own)
        average_statistics(model, locals_, [1] * len(locals_))
    return (model, c, own) if whole else model
